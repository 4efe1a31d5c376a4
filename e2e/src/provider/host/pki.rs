//! Certificates of a cluster: new ones at every start, because they carry its addresses and cost milliseconds.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::config::Credentials;
use super::slot::API_SERVICE;

/// A certificate's files below the cluster's `pki` folder.
pub(super) fn certificate(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.crt"))
}

/// A key's file.
pub(super) fn key(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.key"))
}

/// Who a client certificate is for. Kubernetes takes the name for the user, the organisation for the group.
struct Client {
    file: &'static str,
    name: String,
    group: Option<&'static str>,
}

/// Writes all keys and certificates into `dir`.
pub(super) fn write(dir: &Path, node: Ipv4Addr, node_name: &str) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let cluster = Authority::create(dir, "ca", "roadstead-e2e")?;
    let api = ["127.0.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let mut api: Vec<String> = api.map(str::to_owned).to_vec();
    api.extend([node.to_string(), API_SERVICE.to_string()]);
    cluster.server(dir, "apiserver", "kube-apiserver", api)?;
    cluster.server(dir, "kubelet-server", node_name, vec![node_name.to_owned(), node.to_string()])?;
    for client in clients(node_name) {
        cluster.client(dir, &client)?;
    }
    // An authority of its own: a client of the API server must not be a client of its store.
    let store = Authority::create(dir, "etcd-ca", "roadstead-e2e-etcd")?;
    store.server(
        dir,
        "etcd-server",
        "etcd",
        vec!["127.0.0.1".into(), "localhost".into(), node.to_string()],
    )?;
    store.client(dir, &Client { file: "etcd-client", name: "kube-apiserver".into(), group: None })?;
    let accounts = KeyPair::generate().context("cannot make the key of the service accounts")?;
    write_key(&key(dir, "service-accounts"), &accounts.serialize_pem())?;
    let public = dir.join("service-accounts.pub");
    fs::write(&public, accounts.public_key_pem())
        .with_context(|| format!("cannot write {}", public.display()))
}

fn clients(node_name: &str) -> [Client; 6] {
    let client = |file, name: &str, group| Client { file, name: name.to_owned(), group };
    [
        client("admin", "kubernetes-admin", Some("system:masters")),
        client("apiserver-kubelet", "kube-apiserver-kubelet-client", Some("system:masters")),
        client("controller-manager", "system:kube-controller-manager", None),
        client("scheduler", "system:kube-scheduler", None),
        client("proxy", "system:kube-proxy", None),
        client("kubelet", &format!("system:node:{node_name}"), Some("system:nodes")),
    ]
}

/// What a kubeconfig embeds, read back from the files.
pub(super) fn credentials(dir: &Path, client: &str) -> Result<Credentials> {
    let read = |path: PathBuf| fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
    Ok(Credentials {
        authority: read(certificate(dir, "ca"))?,
        certificate: read(certificate(dir, client))?,
        key: read(key(dir, client))?,
    })
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn create(dir: &Path, file: &str, name: &str) -> Result<Self> {
        let context = || format!("cannot make the authority {name}");
        let mut params = params(name, None, Vec::new()).with_context(context)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pair = KeyPair::generate().with_context(context)?;
        write_key(&key(dir, file), &pair.serialize_pem())?;
        let own = params.self_signed(&pair).with_context(context)?;
        fs::write(certificate(dir, file), own.pem()).with_context(context)?;
        Ok(Self { issuer: Issuer::new(params, pair) })
    }

    fn server(&self, dir: &Path, file: &str, name: &str, names: Vec<String>) -> Result<()> {
        self.sign(dir, file, params(name, None, names)?, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn client(&self, dir: &Path, client: &Client) -> Result<()> {
        let params = params(&client.name, client.group, Vec::new())?;
        self.sign(dir, client.file, params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        dir: &Path,
        file: &str,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<()> {
        let context = || format!("cannot make the certificate {file}");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let pair = KeyPair::generate().with_context(context)?;
        let signed = params.signed_by(&pair, &self.issuer).with_context(context)?;
        write_key(&key(dir, file), &pair.serialize_pem())?;
        fs::write(certificate(dir, file), signed.pem()).with_context(context)
    }
}

fn params(name: &str, group: Option<&str>, names: Vec<String>) -> Result<CertificateParams> {
    let mut params =
        CertificateParams::new(names).with_context(|| format!("bad name in the certificate {name}"))?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    Ok(params)
}

fn write_key(path: &Path, pem: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(pem.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn every_key_is_private_and_has_its_certificate() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), Ipv4Addr::new(10, 213, 1, 2), "node").unwrap();
        let mut keys = 0;
        for entry in fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "key") {
                keys += 1;
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
                let other = if path.ends_with("service-accounts.key") { "pub" } else { "crt" };
                assert!(path.with_extension(other).exists(), "{}", path.display());
            }
        }
        assert_eq!(keys, 13);
        assert!(credentials(dir.path(), "admin").unwrap().certificate.starts_with(b"-----BEGIN CERTIFICATE"));
    }
}

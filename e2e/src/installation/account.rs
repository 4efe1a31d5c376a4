//! The shim's account, as a platform team hands it to its gitlab-runner: a kubeconfig with a token.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{AuthInfo, Kubeconfig, NamedAuthInfo};
use kube::{Api, Client};

use crate::cluster::Cluster;

/// Longer than any test run.
const TOKEN_SECONDS: i64 = 6 * 3600;

/// A fresh token of an account.
pub(crate) async fn token(client: &Client, namespace: &str, account: &str) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("cannot get a token of the account {account}"))?;
    answer.status.and_then(|status| status.token).context("the API server gave no token")
}

/// Writes a kubeconfig like the administrator's, with a fresh token of the shim's account.
pub(super) async fn write_kubeconfig(client: &Client, cluster: &Cluster, to: &Path) -> Result<()> {
    let release = &cluster.release;
    let account = release.shim_account();
    let token = token(client, &release.namespace, &account).await.context("is the chart installed?")?;
    let mut config = read(&cluster.kubeconfig)?;
    config.auth_infos = vec![NamedAuthInfo {
        name: account.clone(),
        auth_info: Some(AuthInfo { token: Some(token.into()), ..AuthInfo::default() }),
        other: std::collections::BTreeMap::default(),
    }];
    for context in config.contexts.iter_mut().filter_map(|named| named.context.as_mut()) {
        context.user = Some(account.clone());
        context.namespace = Some(release.job_namespace.clone());
    }
    write(&config, to)
}

/// Where a kubeconfig's API server listens.
pub(super) fn server_address(kubeconfig: &Path) -> Result<SocketAddr> {
    let config = read(kubeconfig)?;
    let server = config.clusters.first().and_then(|named| named.cluster.as_ref()?.server.clone());
    let server = server.context("the kubeconfig names no server")?;
    resolve(&server)
}

/// An IPv4 address and port of a server's URL.
///
/// # Errors
/// When it is no URL, or its host has no such address.
pub(crate) fn resolve(server: &str) -> Result<SocketAddr> {
    let url: http::Uri = server.parse().with_context(|| format!("{server} is no URL"))?;
    let host = url.host().with_context(|| format!("{server} names no host"))?;
    let port = url.port_u16().unwrap_or(443);
    let mut addresses =
        (host, port).to_socket_addrs().with_context(|| format!("{host} cannot be resolved"))?;
    addresses.find(SocketAddr::is_ipv4).with_context(|| format!("{host} has no IPv4 address"))
}

/// Writes a copy of a kubeconfig that goes to another address, for the same server name.
pub(super) fn redirect(kubeconfig: &Path, address: SocketAddr, to: &Path) -> Result<()> {
    let mut config = read(kubeconfig)?;
    for cluster in config.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        let original: http::Uri = cluster.server.as_deref().unwrap_or_default().parse().context("no URL")?;
        cluster.server = Some(format!("https://{address}"));
        if cluster.tls_server_name.is_none() {
            cluster.tls_server_name = original.host().map(str::to_owned);
        }
    }
    write(&config, to)
}

fn read(path: &Path) -> Result<Kubeconfig> {
    Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(config: &Kubeconfig, to: &Path) -> Result<()> {
    // JSON is YAML, and the client's own types leave no secret out of it.
    let text = serde_json::to_vec(config).context("cannot write a kubeconfig")?;
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))
}

//! The shim's account, as a platform team hands it to its gitlab-runner: a kubeconfig with a token.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{AuthInfo, Kubeconfig, NamedAuthInfo};
use kube::{Api, Client};

use super::{JOB_NAMESPACE, SYSTEM_NAMESPACE};

/// Name of the shim's account in the chart.
const ACCOUNT: &str = "roadstead-shim";

/// Longer than any test run.
const TOKEN_SECONDS: i64 = 6 * 3600;

/// Writes a kubeconfig like `admin`'s, with a fresh token of the shim's account.
pub(super) async fn write_kubeconfig(client: &Client, admin: &Path, to: &Path) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(ACCOUNT, &PostParams::default(), &request)
        .await
        .context("cannot get a token of the shim's account: is the chart installed?")?;
    let token = answer.status.and_then(|status| status.token).context("the API server gave no token")?;
    let mut config = read(admin)?;
    config.auth_infos = vec![NamedAuthInfo {
        name: ACCOUNT.to_owned(),
        auth_info: Some(AuthInfo { token: Some(token.into()), ..AuthInfo::default() }),
        other: std::collections::BTreeMap::default(),
    }];
    for context in config.contexts.iter_mut().filter_map(|named| named.context.as_mut()) {
        context.user = Some(ACCOUNT.to_owned());
        context.namespace = Some(JOB_NAMESPACE.to_owned());
    }
    write(&config, to)
}

/// Where a kubeconfig's API server listens.
pub(super) fn server_address(kubeconfig: &Path) -> Result<SocketAddr> {
    let config = read(kubeconfig)?;
    let server = config.clusters.first().and_then(|named| named.cluster.as_ref()?.server.clone());
    let server = server.context("the kubeconfig names no server")?;
    let authority = server.trim_start_matches("https://").trim_end_matches('/');
    authority.parse().with_context(|| format!("the server {server} is not an IP address and port"))
}

/// Writes a copy of a kubeconfig that goes to another address, for the same server name.
pub(super) fn redirect(kubeconfig: &Path, address: SocketAddr, to: &Path) -> Result<()> {
    let mut config = read(kubeconfig)?;
    let original = server_address(kubeconfig)?.ip().to_string();
    for cluster in config.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        cluster.server = Some(format!("https://{address}"));
        cluster.tls_server_name.get_or_insert_with(|| original.clone());
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

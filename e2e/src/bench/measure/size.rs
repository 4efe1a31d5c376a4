//! Sizes of Roadstead's images, as the node reports them.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Node;
use kube::Api;

use super::mebibytes;
use crate::bench::Bench;
use crate::bench::options::Topic;
use crate::bench::report::{Row, Unit};

/// Images by their short names, and what is said of them.
const IMAGES: [(&str, &str); 3] = [
    ("agent", "agent: what each job's pod gets"),
    ("operator", "operator"),
    ("executor-shim", "executor-shim"),
];

pub(in crate::bench) async fn size(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let nodes: Api<Node> = Api::all(bench.installation.client.clone());
    let node = nodes.get_opt(&bench.installation.cluster.node).await.context("cannot read the node")?;
    let images = node.and_then(|node| node.status?.images).unwrap_or_default();
    let size_of = |name: &str| -> Result<Option<f64>> {
        let reference = bench.installation.image(name)?;
        let named = |names: &[String]| names.iter().any(|one| one.ends_with(reference));
        let image = images.iter().find(|image| named(image.names.as_deref().unwrap_or_default()));
        Ok(image.and_then(|image| u64::try_from(image.size_bytes?).ok()).map(mebibytes))
    };
    let row = |(name, what): (&str, &str)| {
        Ok(Row::new(Topic::Size, Unit::Mebibytes, format!("image {what}"), size_of(name)?))
    };
    IMAGES.into_iter().map(row).collect()
}

//! Why the kubelet evicted a pod that wrote too much, from the kubelet's words.
//!
//! They are those of its local storage eviction up to Kubernetes 1.35. A pod that is evicted for the node's sake, because
//! others have filled its disk, gets other words.

/// Whose limit was exceeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overrun {
    /// One container's limit of `ephemeral-storage`: what it wrote besides its volumes, and its log.
    Container {
        /// Its name.
        name: String,
        /// Its limit.
        limit: String,
    },
    /// The limits of all containers together: what they wrote, and the volumes on the node's disk.
    Pod {
        /// The sum of the limits.
        limit: String,
    },
    /// The `sizeLimit` of a volume on the node's disk.
    Volume {
        /// Its name in the pod.
        name: String,
        /// Its limit.
        limit: String,
    },
}

/// The overrun that the words of an eviction tell of, if they do.
pub fn overrun(words: &str) -> Option<Overrun> {
    let words = words.trim().trim_end_matches('.');
    if let Some(limit) =
        words.strip_prefix("Pod ephemeral local storage usage exceeds the total limit of containers ")
    {
        return word(limit).map(|limit| Overrun::Pod { limit });
    }
    if let Some(rest) = words.strip_prefix("Container ") {
        let (name, limit) = rest.split_once(" exceeded its local ephemeral storage limit ")?;
        return Some(Overrun::Container { name: word(name)?, limit: word(limit)? });
    }
    let rest = words.strip_prefix("Usage of EmptyDir volume ")?;
    let (name, limit) = rest.split_once(" exceeds the limit ")?;
    Some(Overrun::Volume { name: word(name)?, limit: word(limit)? })
}

/// One word, with or without quotation marks.
fn word(text: &str) -> Option<String> {
    let text = text.trim().trim_matches('"');
    (!text.is_empty() && !text.contains([' ', '"'])).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_words_are_understood() {
        for (words, expected) in [
            (
                "Pod ephemeral local storage usage exceeds the total limit of containers 32Mi. ",
                Some(Overrun::Pod { limit: "32Mi".to_owned() }),
            ),
            (
                "Container build exceeded its local ephemeral storage limit \"32Mi\". ",
                Some(Overrun::Container { name: "build".to_owned(), limit: "32Mi".to_owned() }),
            ),
            (
                "Usage of EmptyDir volume \"builds\" exceeds the limit \"1Gi\". ",
                Some(Overrun::Volume { name: "builds".to_owned(), limit: "1Gi".to_owned() }),
            ),
            (
                "The node was low on resource: ephemeral-storage. Container build was using 5Gi, request is 0.",
                None,
            ),
            ("Container build exceeded its local ephemeral storage limit \"\". ", None),
            ("", None),
        ] {
            assert_eq!(overrun(words), expected, "{words}");
        }
    }
}

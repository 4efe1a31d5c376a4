//! Addresses: each cluster has a slot, and the slot gives the network between this machine and the cluster.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::exec::{capture, command};
use crate::lock::Lock;
use crate::progress::Progress;
use crate::state::{ClusterDir, State, replace};

/// Pods' addresses. They are never seen outside the cluster's network namespace, so all clusters use the same.
pub(super) const POD_RANGE: &str = "10.244.0.0/16";
/// Services' addresses, likewise.
pub(super) const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The API server's own service address: the first of the range.
pub(super) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Length of the prefix of a slot's network.
pub(super) const PREFIX: u8 = 24;
/// Routes wider than this are taken for the way to everywhere, not for a neighbour that must not be shadowed.
const WIDE: u8 = 16;

/// One of 256 networks `10.213.SLOT.0/24`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Slot(u8);

impl Slot {
    /// This machine's end; pods reach the machine there.
    pub(super) fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.0, 1)
    }

    /// The cluster's end: the node.
    pub(super) fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.0, 2)
    }

    /// The machine's network interface.
    pub(super) fn link(self) -> String {
        format!("rse2e-{}", self.0)
    }

    /// The slot that a cluster wrote down earlier.
    pub(super) fn recorded(dir: &ClusterDir) -> Option<Self> {
        fs::read_to_string(file(dir)).ok()?.trim().parse().ok().map(Self)
    }

    /// The cluster's slot from earlier if its network is still free, or else a free one, which it writes down.
    /// To be called only when the cluster does not run.
    pub(super) fn obtain(progress: &Progress, state: &State, dir: &ClusterDir) -> Result<Self> {
        let _lock = Lock::wait(progress, "network", &state.cache_lock("slots"))?;
        let mut taken = networks(&capture(&mut command("ip", ["-4", "-o", "addr", "show"]))?);
        taken.extend(networks(&capture(&mut command("ip", ["-4", "-o", "route", "show", "table", "all"]))?));
        for other in state.clusters()? {
            if other.id() != dir.id() {
                taken.extend(Self::recorded(&other).map(|slot| Network::new(slot.host(), PREFIX)));
            }
        }
        let wanted = Self::recorded(dir).unwrap_or_else(|| Self::preferred(dir.id()));
        let slot = wanted.first_free(&taken)?;
        fs::create_dir_all(dir.dir()).with_context(|| format!("cannot create {}", dir.dir().display()))?;
        replace(&file(dir), slot.0.to_string())?;
        Ok(slot)
    }

    /// Spreads clusters, so that they rarely ask for the same network.
    fn preferred(id: &str) -> Self {
        Self(id.bytes().fold(0, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte)))
    }

    fn first_free(self, taken: &[Network]) -> Result<Self> {
        let free = (0..=u8::MAX).map(|step| Self(self.0.wrapping_add(step))).find(|slot| {
            let mine = Network::new(slot.host(), PREFIX);
            !taken.iter().any(|other| other.prefix >= WIDE && other.overlaps(mine))
        });
        match free {
            Some(slot) => Ok(slot),
            None => bail!("no free network for the cluster: all of 10.213.0.0/16 is in use on this machine"),
        }
    }
}

fn file(dir: &ClusterDir) -> std::path::PathBuf {
    dir.file("slot")
}

/// Removes a slot's interface, should one be left.
pub(super) fn remove_link(slot: Slot) -> Result<()> {
    let link = slot.link();
    if Path::new("/sys/class/net").join(&link).exists() {
        // It may go by itself at this very moment: what counts is that it is gone.
        let deleted = capture(&mut command("ip", ["link", "delete", &link]));
        if Path::new("/sys/class/net").join(&link).exists() {
            deleted.with_context(|| format!("the interface {link} of a dead cluster stays"))?;
        }
    }
    Ok(())
}

/// An IPv4 network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Network {
    address: u32,
    prefix: u8,
}

impl Network {
    fn new(address: Ipv4Addr, prefix: u8) -> Self {
        Self { address: address.to_bits(), prefix }
    }

    fn overlaps(self, other: Self) -> bool {
        let shorter = self.prefix.min(other.prefix);
        let mask = u32::MAX.checked_shl(32 - u32::from(shorter)).unwrap_or(0);
        self.address & mask == other.address & mask
    }
}

/// The networks in the output of `ip addr` or `ip route`: every word that looks like one.
fn networks(text: &str) -> Vec<Network> {
    text.split_whitespace()
        .filter_map(|word| {
            let (address, prefix) = word.split_once('/').unwrap_or((word, "32"));
            Some(Network::new(address.parse().ok()?, prefix.parse().ok().filter(|prefix| *prefix <= 32)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_found_in_what_ip_prints() {
        let text = "2: eth0    inet 192.0.2.2/24 brd 192.0.2.255 scope global eth0\n\
                    default via 192.0.2.1 dev eth0\n10.213.4.0/24 dev rse2e-4 proto kernel";
        let found = networks(text);
        assert!(found.contains(&Network::new(Ipv4Addr::new(192, 0, 2, 2), 24)));
        assert!(found.contains(&Network::new(Ipv4Addr::new(10, 213, 4, 0), 24)));
    }

    #[test]
    fn networks_overlap_by_the_shorter_prefix() {
        let slot = Network::new(Slot(4).host(), PREFIX);
        assert!(slot.overlaps(Network::new(Ipv4Addr::new(10, 213, 4, 77), 32)));
        assert!(slot.overlaps(Network::new(Ipv4Addr::new(10, 0, 0, 0), 8)));
        assert!(slot.overlaps(Network::new(Ipv4Addr::UNSPECIFIED, 0)));
        assert!(!slot.overlaps(Network::new(Ipv4Addr::new(10, 213, 5, 0), 24)));
    }

    #[test]
    fn a_taken_slot_is_passed_over_and_a_wide_route_is_not_minded() {
        let taken = [
            Network::new(Ipv4Addr::new(10, 213, 255, 0), 24),
            Network::new(Ipv4Addr::new(10, 213, 0, 9), 32),
            Network::new(Ipv4Addr::new(10, 0, 0, 0), 8),
        ];
        assert_eq!(Slot(255).first_free(&taken).unwrap(), Slot(1));
        assert_eq!(Slot(7).first_free(&taken).unwrap(), Slot(7));
        let all = [Network::new(Ipv4Addr::new(10, 213, 0, 0), 16)];
        assert!(Slot(7).first_free(&all).unwrap_err().to_string().contains("10.213.0.0/16"));
    }

    #[test]
    fn a_link_name_fits_the_kernel() {
        assert!(Slot(255).link().len() <= 15);
    }
}

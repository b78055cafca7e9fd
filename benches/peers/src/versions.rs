//! Which versions of the peers this was built with: what the lock file says.

use crate::peer::Peer;

const LOCK: &str = include_str!("../Cargo.lock");

/// `name version` of each peer, and of the runtime that three of them live on.
pub fn all() -> Vec<String> {
    let mut names: Vec<&str> = Peer::ALL.into_iter().filter_map(Peer::package).collect();
    names.dedup();
    names.push("tokio");
    names.into_iter().map(|name| format!("{name} {}", locked(name).unwrap_or("?"))).collect()
}

fn locked(name: &str) -> Option<&'static str> {
    let (_, after) = LOCK.split_once(&format!("\nname = \"{name}\"\nversion = \""))?;
    after.split_once('"').map(|(version, _)| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_a_version() {
        assert!(all().iter().all(|line| !line.ends_with('?')), "{:?}", all());
    }
}

//! The identity of an instance.

use efgs_protocol::random;

/// One start of a gateway. A restart is another instance, so that their records are never mixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// 16 hexadecimal digits, chosen at random at each start.
    pub id: String,
    /// The name of the machine or container, for people.
    pub host: String,
}

impl Instance {
    /// A new one.
    pub fn new() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.trim().chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
        Self { id: random::hex::<8>(), host: if host.is_empty() { "unknown".to_owned() } else { host } }
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Instance;

    #[test]
    fn every_start_has_an_id_of_its_own() {
        let (one, other) = (Instance::new(), Instance::new());
        assert!(one.id.len() == 16 && one.id.bytes().all(|b| b.is_ascii_hexdigit()), "{one:?}");
        assert_ne!(one.id, other.id);
        assert!(!one.host.is_empty());
    }
}

//! The names of the operations that are counted. The gateway's table of operations uses them.

/// Gives keys to the other countries.
pub const UPLOAD: &str = "upload";
/// Takes an upload back.
pub const WITHDRAW: &str = "withdraw";
/// Gets a batch.
pub const DOWNLOAD: &str = "download";
/// Gets the proof of a batch.
pub const AUDIT: &str = "audit";

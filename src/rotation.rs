//! Rotating the encryption key while the gateway serves (spec §8.2).
//!
//! First every instance gets the new key (at the end of `encryption.keys`), then the key becomes the first one,
//! then all stored payloads are sealed with it, and then the old key can be removed. Every payload stays
//! readable, because every instance has both keys. Each upload names the key of all its payloads; both change
//! in one transaction, so an interrupted rotation can be continued.

use crate::{
    intake::{EncryptionError, Keyring},
    jobs,
    store::{Job, Lease, Store, StoreError, StoredPayload},
};

/// Why a rotation stopped. Its changes so far are kept, and the next rotation continues from there.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Payloads cannot be opened: they were modified in the database.
    #[error(
        "{} uploads do not open, because rows of them were altered in the database ({}). Everything else is sealed with \
         the first key now; these are left until they expire, and hold on to their key in `encryption.keys` until then",
        .0.len(),
        .0.iter().map(|(upload, why)| format!("upload {upload}: {why}")).collect::<Vec<_>>().join("; ")
    )]
    Altered(Vec<(i64, EncryptionError)>),
    /// Another key is registered under this id.
    #[error(
        "encryption key {0} is not the one that this database knows under this id: every gateway needs the same key files; \
         put the right file in place, or, if it is to be a new key, give it an id that has never been used"
    )]
    WrongKey(u32),
    /// The system has no random numbers.
    #[error(transparent)]
    Random(EncryptionError),
    /// Payloads need a key that is not configured.
    #[error(transparent)]
    MissingKey(#[from] MissingKey),
}

/// Stored payloads need a key that is not in `encryption.keys`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{uploads} stored uploads are sealed with encryption key {id}, which `encryption.keys` does not name: add the key \
     again, behind the others; after `efgs-gateway encryption rotate` it can go"
)]
pub struct MissingKey {
    /// The key.
    pub id: u32,
    /// The number of uploads that need it.
    pub uploads: u64,
}

/// The result of a rotation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotated {
    /// Uploads sealed with the first key by this rotation.
    pub uploads: u64,
    /// The diagnosis keys in them.
    pub keys: u64,
}

/// Fails if stored payloads could not be read with these keys, or if a key is not the one that other gateways
/// have under its id. Called at the start, so that no request fails because of it.
pub async fn check(store: &Store, keyring: &Keyring) -> Result<(), RotationError> {
    let known = keyring.ids();
    if let Some(id) = store.keys_in_use().await?.into_iter().find(|id| !known.contains(id)) {
        let used = store.encryption_keys().await?;
        let uploads = used.iter().find(|used| used.id == id).map_or(0, |used| used.uploads);
        return Err(MissingKey { id, uploads }.into());
    }
    let marked = store.key_marks().await?;
    for (id, mark) in keyring.marks().map_err(RotationError::Random)? {
        if marked.iter().any(|(marked, _)| *marked == id) {
            continue;
        }
        // The database is older than these checks.
        if let Some(mut stored) = store.payload_sealed_with(id).await?
            && keyring.open(&stored.payload_hash, &mut stored.payload).is_err()
        {
            return Err(RotationError::WrongKey(id));
        }
        store.mark_key(id, &mark).await?;
    }
    // If two gateways start at once with different keys, one of them finds the other's check value here.
    recognise(store, keyring).await
}

/// Fails if a key does not match the check value stored under its id. Changes nothing.
pub async fn recognise(store: &Store, keyring: &Keyring) -> Result<(), RotationError> {
    let known = keyring.ids();
    let marks = store.key_marks().await?;
    match marks.iter().find(|(id, mark)| known.contains(id) && !keyring.is_recognised(mark)) {
        Some((id, _)) => Err(RotationError::WrongKey(*id)),
        None => Ok(()),
    }
}

/// Seals everything that other keys have sealed with the first key; continues past payloads that cannot be
/// opened. Calls `progress` after each upload. Gateways may serve meanwhile; what they still seal with another
/// key needs another rotation. A second rotation waits for the lease.
pub async fn rotate(
    store: &Store,
    keyring: &Keyring,
    mut progress: impl FnMut(Rotated),
) -> Result<Rotated, RotationError> {
    check(store, keyring).await?;
    let lease = jobs::wait_for_lease(store, Job::Rotation).await?;
    let mut outcome = Ok(Rotated::default());
    jobs::under_lease(store, lease, async |lease| {
        outcome = rotate_all(store, keyring, lease, &mut progress).await;
        Ok::<(), StoreError>(())
    })
    .await?;
    outcome
}

async fn rotate_all(
    store: &Store,
    keyring: &Keyring,
    lease: &Lease,
    progress: &mut impl FnMut(Rotated),
) -> Result<Rotated, RotationError> {
    let Some(newest) = keyring.ids().first().copied() else { return Ok(Rotated::default()) };
    let (mut total, mut at, mut altered) = (Rotated::default(), 0, Vec::new());
    while let Some(upload) = store.next_to_rotate(newest, at).await? {
        at = upload;
        let mut payloads = store.payloads_of(upload).await?;
        let key_id = match reseal(keyring, &mut payloads) {
            Ok(key_id) => key_id,
            Err(why) => {
                altered.push((upload, why));
                continue;
            }
        };
        store.replace_payloads(lease, upload, key_id, &payloads).await?;
        total.uploads += 1;
        total.keys += payloads.len() as u64;
        progress(total);
    }
    if altered.is_empty() { Ok(total) } else { Err(RotationError::Altered(altered)) }
}

/// Seals all payloads of an upload with the first key, and records that key.
fn reseal(keyring: &Keyring, payloads: &mut [StoredPayload]) -> Result<u32, EncryptionError> {
    let sealer = keyring.sealer();
    let nonces = Keyring::nonces(payloads.len());
    for (row, nonce) in payloads.iter_mut().zip(nonces) {
        let hash = row.payload_hash.as_slice().try_into().map_err(|_| EncryptionError::Truncated)?;
        row.payload = sealer.seal(hash, nonce, keyring.open(hash, &mut row.payload)?)?;
    }
    sealer.id()
}

//! Encryption at rest (spec §8.2): AES-256-GCM, one message per key.
//!
//! A stored payload is `key id (4 bytes) ‖ nonce (12 bytes) ‖ ciphertext ‖ tag (16 bytes)`. The nonce is
//! random. The payload's hash is authenticated with it, so that a payload that was moved to another row cannot
//! be opened. With random nonces one key may seal 2³² payloads (NIST SP 800-38D §8.3): years of the largest
//! traffic that the specification expects (spec §5.5.1). `efgs-gateway encryption rotate` rotates the key.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use parking_lot::RwLock;
use zeroize::Zeroizing;

use efgs_protocol::random;

use efgs_kit::config::{ConfigError, Encryption, EncryptionKey};

const KEY_ID: usize = 4;
const TAG: usize = 16;
/// The authenticated data of check values, instead of a payload's hash.
const MARK: [u8; 32] = [0; 32];

/// The configured keys: the first one seals, all of them open. They can be replaced while in use.
pub struct Keyring(RwLock<Arc<Keys>>);

type Keys = Vec<(u32, LessSafeKey)>;

/// The first key at one moment. It seals all payloads of an upload, also if the keys are replaced meanwhile.
pub struct Sealer(Arc<Keys>);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Sealer").field(&self.0.first().map(|(id, _)| id)).finish()
    }
}

impl Sealer {
    fn key(&self) -> Result<(u32, &LessSafeKey), EncryptionError> {
        self.0.first().map(|(id, key)| (*id, key)).ok_or(EncryptionError::UnknownKey(0))
    }

    /// The key's id.
    pub fn id(&self) -> Result<u32, EncryptionError> {
        Ok(self.key()?.0)
    }

    /// Seals a payload. A nonce must not be used twice.
    pub fn seal(
        &self,
        payload_hash: &[u8; 32],
        nonce: [u8; NONCE_LEN],
        plain: &[u8],
    ) -> Result<Vec<u8>, EncryptionError> {
        seal(self.key()?, payload_hash, nonce, plain)
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

/// Why a stored payload cannot be opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EncryptionError {
    /// Too short to be a payload.
    #[error("a stored payload is cut short")]
    Truncated,
    /// Its key is not configured.
    #[error("a stored payload needs encryption key {0}, which `encryption.keys` does not name")]
    UnknownKey(u32),
    /// The payload was altered or moved, or another key has the same id.
    #[error(
        "a stored payload does not open with encryption key {0}: it was altered, or the key is not the one it was made with"
    )]
    Altered(u32),
}

impl Keyring {
    /// Reads the key files.
    pub fn load(config: &Encryption) -> Result<Self, ConfigError> {
        let read = |key: &EncryptionKey| {
            let file = key.file.display();
            let invalid =
                |reason: String| ConfigError::Invalid(format!("`encryption.keys`, id {}: {reason}", key.id));
            let text = std::fs::read_to_string(&key.file)
                .map_err(|e| invalid(format!("cannot read {file}: {e}")))?;
            let text = Zeroizing::new(text);
            let wrong = || {
                invalid(format!(
                    "{file} does not hold 32 bytes in base64; `openssl rand -base64 32` makes a key"
                ))
            };
            let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| wrong())?);
            let unbound = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| wrong())?;
            Ok((key.id, LessSafeKey::new(unbound)))
        };
        let keys = config.keys.iter().map(read).collect::<Result<Keys, _>>()?;
        Ok(Self(RwLock::new(Arc::new(keys))))
    }

    /// The ids of all keys. The first one seals.
    pub fn ids(&self) -> Vec<u32> {
        self.keys().iter().map(|(id, _)| *id).collect()
    }

    /// Takes the keys of another keyring. From now on its first key seals.
    pub fn replace(&self, new: &Self) {
        *self.0.write() = new.keys();
    }

    fn keys(&self) -> Arc<Keys> {
        self.0.read().clone()
    }

    /// The id of the key that a stored payload needs.
    pub fn id_of(sealed: &[u8]) -> Result<u32, EncryptionError> {
        sealed.first_chunk().map(|id| u32::from_be_bytes(*id)).ok_or(EncryptionError::Truncated)
    }

    /// Nonces for `n` payloads, drawn together because each draw is expensive.
    pub fn nonces(n: usize) -> Vec<[u8; NONCE_LEN]> {
        let mut nonces = vec![[0; NONCE_LEN]; n];
        random::fill(nonces.as_flattened_mut());
        nonces
    }

    /// A check value per key: a known text sealed with it. See [`Self::is_recognised`].
    pub fn marks(&self) -> Result<Vec<(u32, Vec<u8>)>, EncryptionError> {
        let keys = self.keys();
        let nonces = Self::nonces(keys.len());
        let mark =
            |((id, key), nonce): (&(u32, LessSafeKey), _)| Ok((*id, seal((*id, key), &MARK, nonce, &[])?));
        keys.iter().zip(nonces).map(mark).collect()
    }

    /// Whether the key with the check value's id made it.
    pub fn is_recognised(&self, mark: &[u8]) -> bool {
        self.open(&MARK, &mut mark.to_vec()).is_ok()
    }

    /// The key that seals now.
    pub fn sealer(&self) -> Sealer {
        Sealer(self.keys())
    }

    /// Seals a payload with the first key. A nonce must not be used twice.
    pub fn seal(
        &self,
        payload_hash: &[u8; 32],
        nonce: [u8; NONCE_LEN],
        plain: &[u8],
    ) -> Result<Vec<u8>, EncryptionError> {
        self.sealer().seal(payload_hash, nonce, plain)
    }

    /// Opens a payload in place and returns its plaintext.
    pub fn open<'a>(&self, payload_hash: &[u8], sealed: &'a mut [u8]) -> Result<&'a [u8], EncryptionError> {
        let (id, rest) = sealed.split_first_chunk_mut::<KEY_ID>().ok_or(EncryptionError::Truncated)?;
        let (nonce, ciphertext) =
            rest.split_first_chunk_mut::<NONCE_LEN>().ok_or(EncryptionError::Truncated)?;
        let id = u32::from_be_bytes(*id);
        let keys = self.keys();
        let (_, key) = keys.iter().find(|(known, _)| *known == id).ok_or(EncryptionError::UnknownKey(id))?;
        key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(payload_hash), ciphertext)
            .map(|plain| &*plain)
            .map_err(|_| EncryptionError::Altered(id))
    }
}

/// Seals with one key.
fn seal(
    (id, key): (u32, &LessSafeKey),
    payload_hash: &[u8; 32],
    nonce: [u8; NONCE_LEN],
    plain: &[u8],
) -> Result<Vec<u8>, EncryptionError> {
    let mut sealed = Vec::with_capacity(KEY_ID + NONCE_LEN + plain.len() + TAG);
    sealed.extend_from_slice(&id.to_be_bytes());
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plain);
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(payload_hash),
            &mut sealed[KEY_ID + NONCE_LEN..],
        )
        .map_err(|_| EncryptionError::Altered(id))?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn keyring(keys: &[(u32, u8)]) -> Keyring {
        let key = |byte| LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[byte; 32]).unwrap());
        Keyring(RwLock::new(Arc::new(keys.iter().map(|(id, byte)| (*id, key(*byte))).collect())))
    }

    #[test]
    fn keys_are_exchanged_in_use() {
        let (hash, ring) = ([7; 32], keyring(&[(1, 1)]));
        let nonce = random::bytes();
        let old = ring.seal(&hash, nonce, b"a key").unwrap();
        let sealer = ring.sealer();
        ring.replace(&keyring(&[(2, 2), (1, 1)]));
        let begun = sealer.seal(&hash, random::bytes(), b"a key").unwrap();
        assert_eq!((sealer.id(), Keyring::id_of(&begun)), (Ok(1), Ok(1)));
        let new = ring.seal(&hash, nonce, b"a key").unwrap();
        assert_eq!((Keyring::id_of(&old), Keyring::id_of(&new)), (Ok(1), Ok(2)));
        assert_eq!(ring.open(&hash, &mut old.clone()), Ok(&b"a key"[..]));
        assert_eq!(ring.open(&hash, &mut new.clone()), Ok(&b"a key"[..]));
        assert_eq!(format!("{ring:?}"), "[2, 1]");
    }

    #[test]
    fn what_the_first_key_seals_every_keyring_with_that_key_opens() {
        let hash = [7; 32];
        let nonce = random::bytes();
        let sealed = keyring(&[(1, 1)]).seal(&hash, nonce, b"a key").unwrap();
        assert_eq!(keyring(&[(2, 2), (1, 1)]).open(&hash, &mut sealed.clone()), Ok(&b"a key"[..]));
        assert_eq!(keyring(&[(2, 2)]).open(&hash, &mut sealed.clone()), Err(EncryptionError::UnknownKey(1)));
        assert_eq!(keyring(&[(1, 9)]).open(&hash, &mut sealed.clone()), Err(EncryptionError::Altered(1)));
    }

    #[test]
    fn an_altered_cut_or_moved_payload_does_not_open() {
        let hash = [7; 32];
        let ring = keyring(&[(1, 1)]);
        let sealed = ring.seal(&hash, random::bytes(), b"a key").unwrap();
        for at in 4..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert_eq!(ring.open(&hash, &mut altered), Err(EncryptionError::Altered(1)), "byte {at}");
        }
        assert_eq!(ring.open(&[8; 32], &mut sealed.clone()), Err(EncryptionError::Altered(1)));
        assert_eq!(ring.open(&hash, &mut sealed[..15].to_vec()), Err(EncryptionError::Truncated));
    }

    #[test]
    fn nonces_differ_so_that_equal_payloads_look_different() {
        let nonces = Keyring::nonces(1000);
        let distinct: std::collections::HashSet<_> = nonces.iter().collect();
        assert_eq!(distinct.len(), 1000);
    }

    #[test]
    fn a_sealed_payload_has_its_key_and_nonce_in_front_and_its_tag_behind() {
        let ring = keyring(&[(0x0102_0304, 1)]);
        let nonce = [9; NONCE_LEN];
        let sealed = ring.seal(&[7; 32], nonce, b"a key").unwrap();
        assert_eq!(sealed.len(), KEY_ID + NONCE_LEN + 5 + TAG);
        assert_eq!(sealed[..4], [1, 2, 3, 4]);
        assert_eq!(sealed[4..16], nonce);
        assert!(!sealed.windows(5).any(|window| window == b"a key"));
        assert_eq!(Keyring::id_of(&sealed), Ok(0x0102_0304));
        assert_eq!(Keyring::id_of(&sealed[..3]), Err(EncryptionError::Truncated));
    }

    #[test]
    fn a_keyring_without_keys_seals_and_opens_nothing() {
        let empty = keyring(&[]);
        assert_eq!(empty.seal(&[7; 32], [0; NONCE_LEN], b"a key"), Err(EncryptionError::UnknownKey(0)));
        assert_eq!(empty.sealer().id(), Err(EncryptionError::UnknownKey(0)));
        assert_eq!(
            format!("{:?} {:?}", empty.sealer(), keyring(&[(3, 3)]).sealer()),
            "Sealer(None) Sealer(Some(3))"
        );
        assert_eq!(empty.marks(), Ok(vec![]));
        let mut sealed = keyring(&[(3, 3)]).seal(&[7; 32], [0; NONCE_LEN], b"a key").unwrap();
        assert_eq!(empty.open(&[7; 32], &mut sealed), Err(EncryptionError::UnknownKey(3)));
    }

    #[test]
    fn a_mark_recognises_its_key_and_is_no_payload() {
        let ring = keyring(&[(2, 2), (1, 1)]);
        let marks = ring.marks().unwrap();
        assert_eq!(marks.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 1]);
        for (id, mark) in &marks {
            assert!(ring.is_recognised(mark));
            assert_eq!(Keyring::id_of(mark), Ok(*id));
            assert!(!keyring(&[(*id, 9)]).is_recognised(mark), "another key under the id");
            assert!(!keyring(&[(7, *id as u8)]).is_recognised(mark), "the key under another id");
            assert!(ring.open(&[7; 32], &mut mark.clone()).is_err());
        }
        let payload = ring.seal(&[7; 32], [0; NONCE_LEN], b"").unwrap();
        assert!(!ring.is_recognised(&payload));
        assert!(!ring.is_recognised(&[]));
    }

    #[test]
    fn keys_are_read_from_files_of_32_bytes_in_base64() {
        let folder = tempfile::tempdir().unwrap();
        let load = |text: &str| {
            let file = folder.path().join("key");
            std::fs::write(&file, text).unwrap();
            Keyring::load(&Encryption { keys: vec![EncryptionKey { id: 5, file }] })
        };
        let ring = load(&format!(" {}\n", STANDARD.encode([1; 32]))).unwrap();
        assert_eq!(ring.ids(), [5]);
        let mut sealed = keyring(&[(5, 1)]).seal(&[7; 32], [0; NONCE_LEN], b"a key").unwrap();
        assert_eq!(ring.open(&[7; 32], &mut sealed), Ok(&b"a key"[..]));
        for text in [String::new(), "?".into(), STANDARD.encode([1; 16]), STANDARD.encode([1; 33])] {
            let error = load(&text).unwrap_err().to_string();
            assert!(error.contains("id 5: ") && error.contains("does not hold 32 bytes"), "{error}");
            assert!(text.len() < 2 || !error.contains(&text), "{error}");
        }
        let file = folder.path().join("missing");
        let error = Keyring::load(&Encryption { keys: vec![EncryptionKey { id: 5, file }] }).unwrap_err();
        assert!(error.to_string().contains("id 5: cannot read"), "{error}");
    }
}

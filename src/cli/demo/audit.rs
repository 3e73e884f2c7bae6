//! The last steps: a downloading country audits what it was given.

use std::io::Write;

use efgs_client::Download;
use efgs_protocol::{
    audit::{AuditEntry, verify_batch},
    key::{DiagnosisKey, KeyBatch, KeyData},
    signature::SignaturePolicy,
};

use super::{folder::Actor, report::check, steps::Steps};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

impl<W: Write> Steps<'_, W> {
    /// Every country trusts only what it can verify itself.
    pub(super) async fn audit(&mut self, chains: &[(&Actor, Vec<Download>)]) -> Result<()> {
        self.report.part("Audit")?;
        let anchor = self.folder.anchor()?;
        let policy = SignaturePolicy::default();
        let (mut entries_seen, mut batches_hold, mut vouched) = (0, 0, 0);
        let mut last: Option<(&Actor, Vec<AuditEntry>, &KeyBatch)> = None;
        for (actor, chain) in chains {
            for download in chain {
                let entries = actor.gateway.audit(self.date, &download.batch_tag).await?;
                let verdicts = verify_batch(
                    &entries,
                    &download.keys,
                    download.batch_tag.parse().ok(),
                    actor.country,
                    &anchor,
                    policy,
                )?;
                entries_seen += entries.len();
                batches_hold +=
                    verdicts.iter().filter(|verdict| verdict.keys.is_some() && verdict.holds()).count();
                for entry in &entries {
                    vouched += [
                        (&entry.uploader_certificate, &entry.uploader_operator_signature),
                        (&entry.signing_certificate, &entry.signing_certificate_operator_signature),
                    ]
                    .into_iter()
                    .filter(|(pem, signature)| anchor.verify_operator_signature(pem, signature).is_ok())
                    .count();
                }
                if !download.keys.is_empty() {
                    last = Some((actor, entries, &download.keys));
                }
            }
        }
        self.report.step(
            "Each country verifies the batch signatures",
            format_args!("{batches_hold} hold"),
            "Over bytes that they rebuild from the keys they downloaded.",
            // Of two other countries in the first batch, and but for Germany of one in the second.
            [check("batch signatures that hold", 3 * 2 + 2, batches_hold)],
        )?;
        self.report.step(
            "… and that the operator signed every signer's certificate",
            format_args!("{vouched} hold"),
            "With the anchor's certificate, which they got from the operator.",
            [check("entries", 12, entries_seen), check("operator signatures that hold", 24, vouched)],
        )?;
        let Some((actor, entries, keys)) = last else { return Ok(()) };
        let mut forged = KeyBatch::new();
        for (index, key) in keys.iter().enumerate() {
            let mut key_data = *key.key_data.as_bytes();
            key_data[15] ^= u8::from(index == 0);
            forged.push(DiagnosisKey { key_data: KeyData::new(key_data), ..*key }, key.visited_countries());
        }
        let verdicts = verify_batch(&entries, &forged, None, actor.country, &anchor, policy)?;
        let wrong = verdicts.iter().filter(|verdict| !verdict.holds()).count();
        self.report.step(
            "The same with one bit of one key flipped",
            "noticed",
            "So every country detects a gateway that forges keys.",
            [check("entries that do not hold", 1, wrong)],
        )?;
        Ok(())
    }

    pub(super) fn at_rest(&mut self, uploads: &[&KeyBatch]) -> Result<()> {
        self.report.part("At rest")?;
        let database = self.folder.database()?;
        let find = |needle: &[u8]| database.windows(needle.len()).any(|window| window == needle);
        let keys =
            uploads.iter().flat_map(|keys| keys.iter()).filter(|key| find(key.key_data.as_bytes())).count();
        self.report.step(
            "An attacker reads the database's files",
            "no keys in them",
            "Each key is encrypted (AES-256-GCM); only its hash can be looked up.",
            [check("upload tags found", true, find(self.run.as_bytes())), check("keys found", 0, keys)],
        )?;
        Ok(())
    }
}

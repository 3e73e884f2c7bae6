//! Jobs that are run by hand: `batch form` and `expire`.

use efgs_protocol::batch_tag::DayName;

use super::{Outcome, WorkArgs, open_current, say};

pub(super) async fn form_batches(args: &WorkArgs) -> Outcome {
    let app = open_current(&args.file.config).await?;
    let formed = app.batching.form_now().await?;
    let describe = |batch: &crate::store::BatchRecord| {
        let name = DayName { day: batch.day, sequence: batch.sequence }.to_string();
        (batch.id.to_string(), name, batch.uploads.len(), batch.amount())
    };
    if args.json {
        let batches: Vec<_> = formed
            .iter()
            .map(|batch| {
                let (id, name, uploads, keys) = describe(batch);
                serde_json::json!({"batchTag": id, "dayName": name, "uploads": uploads, "keys": keys})
            })
            .collect();
        return say(serde_json::json!({ "formed": batches }));
    }
    for batch in &formed {
        let (id, name, uploads, keys) = describe(batch);
        say(format!("{name}  {id}  {uploads} uploads, {keys} keys"))?;
    }
    say(format!("{} batches formed, no upload waits", formed.len()))
}

pub(super) async fn expire(args: &WorkArgs) -> Outcome {
    let app = open_current(&args.file.config).await?;
    let done = app.expiry.expire_now().await?;
    let oldest = app.chain.oldest();
    if args.json {
        let done = serde_json::json!({"before": oldest, "batches": done.batches, "uploads": done.uploads, "keys": done.keys});
        return say(done);
    }
    say(format!(
        "deleted {} batches, {} uploads and {} keys from before {oldest}; nothing older is left",
        done.batches, done.uploads, done.keys
    ))
}

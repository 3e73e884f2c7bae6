//! One step along the chain: find the next batch, verify it, store it.

use std::sync::{MutexGuard, PoisonError};

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use efgs_protocol::media::Format;
use tokio::time;

use super::{
    ChainError, DownloadError, DownloadEvent, Downloader, Quarantined, Released,
    cursor::{Cursor, Last},
    oldest,
    order::Tag,
    quarantine,
    release::{Bad, Found, verify},
};
use crate::{
    Error,
    fetch::{Answer, Body, Head},
};

/// By how much the clocks of a country and of a gateway may differ.
const SKEW: TimeDelta = TimeDelta::hours(1);

/// What the gateway says of a batch; nothing when it is too old.
type Known<T> = Option<T>;

impl Downloader {
    /// Downloads, verifies and stores the next batch. `None` when there is none at the moment.
    ///
    /// When the future is dropped, the batch is either stored and passed, or neither.
    ///
    /// # Errors
    /// [`DownloadError::Quarantined`] when the batch does not verify; the walk stays before it. For the others
    /// see [`DownloadError`].
    pub async fn next(&mut self) -> Result<Option<Released>, DownloadError> {
        while let Some(found) = self.find().await? {
            let bad = match self.settle(found).await? {
                Ok(released) => return Ok(Some(released)),
                Err(bad) => bad,
            };
            let reason = bad.report.first_failure().unwrap_or_default();
            self.tell(&DownloadEvent::Again { batch_tag: bad.report.batch_tag.clone(), reason });
            time::sleep(self.options.settle).await;
            let Last { tag, date, .. } = &bad.found.last;
            let Some(found) = self.fetch(tag, *date).await? else { continue };
            let bad = match self.settle(found).await? {
                Ok(released) => return Ok(Some(released)),
                Err(bad) => bad,
            };
            let skip = self.options.continue_past.as_deref() == Some(bad.found.last.tag.as_str());
            let quarantined = self.put_aside(bad, skip).await?;
            if !skip {
                self.tell(&DownloadEvent::Quarantined(quarantined.clone()));
                return Err(DownloadError::Quarantined(quarantined));
            }
            self.tell(&DownloadEvent::Passed(quarantined));
        }
        Ok(None)
    }

    /// The batch that follows the cursor, if there is one.
    async fn find(&self) -> Result<Option<Found>, DownloadError> {
        // Before the gateway is asked: what is formed on a later day comes by a later call.
        let today = self.today();
        *self.told() = None;
        let (mut cursor, next) =
            self.with_position(|position| Ok((position.cursor.clone(), position.next.clone()))).await?;
        // Once, this machine's clock was ahead.
        cursor.complete_on = cursor.complete_on.filter(|day| *day <= today);
        let Some(last) = &cursor.last else {
            let since = self.options.since;
            return self.first(since.unwrap_or(oldest(today)), today, &cursor, since.is_some()).await;
        };
        if let Some(since) = self.options.since.filter(|since| *since > last.date) {
            return self.first(since, today, &cursor, true).await;
        }
        let found = match self.following(last, next, today, &cursor).await? {
            Some(found) => found,
            // What follows is not served any more: it goes on behind a gap.
            None => {
                let complete = last.date.max(cursor.complete_on.unwrap_or_default());
                self.first(complete, today, &cursor, true).await?
            }
        };
        if found.is_none() {
            self.at_the_end().await?;
        }
        Ok(found)
    }

    /// The batch that is linked to the last one as `next` or by now, or the first one of a later day.
    async fn following(
        &self,
        last: &Last,
        next: Option<Tag>,
        today: NaiveDate,
        cursor: &Cursor,
    ) -> Result<Known<Option<Found>>, DownloadError> {
        let next = match next {
            Some(next) => Some(next),
            None => match self.link(last, cursor).await? {
                Some(link) => link,
                None => return Ok(None),
            },
        };
        if let Some(next) = next {
            return Ok(self.fetch(&next, next.date().unwrap_or(last.date)).await?.map(Some));
        }
        // A chain may end at midnight, and go on with the first batch of another day.
        let from = last.date.succ_opt().unwrap_or(last.date).max(cursor.complete_on.unwrap_or_default());
        if from > today {
            return Ok(Some(None));
        }
        let Some(found) = self.first(from, today, cursor, true).await? else { return Ok(Some(None)) };
        // It may not be the first one: others may have been formed since the link was read.
        match self.link(last, cursor).await? {
            Some(Some(next)) if !next.may_be(&found.last.tag) => {
                Ok(self.fetch(&next, next.date().unwrap_or(last.date)).await?.map(Some))
            }
            _ => Ok(Some(Some(found))),
        }
    }

    /// The first batch formed on or after a day. Days are asked one by one, because a chain may end with each.
    async fn first(
        &self,
        from: NaiveDate,
        today: NaiveDate,
        cursor: &Cursor,
        report_gap: bool,
    ) -> Result<Option<Found>, DownloadError> {
        let mut gone = false;
        let later = from.succ_opt().unwrap_or(from).max(oldest(today));
        let days = std::iter::once(from).chain(later.iter_days().take_while(|day| *day <= today));
        for day in days {
            let answer = match self.ask(day, None).await {
                Err(error) if is_gone(&error) => {
                    gone = true;
                    continue;
                }
                answer => answer?,
            };
            if gone && report_gap {
                let after = cursor.last.as_ref().map(|last| last.tag.as_str().to_owned());
                self.tell(&DownloadEvent::Gap { after, since: from, until: day });
                gone = false;
            }
            let Some((head, body)) = answer else { continue };
            let tag = Tag::new(&head.batch_tag)?;
            // A name that tells no day may be of a batch that was formed later than the day it was found by.
            if tag.date().is_none() && cursor.passed.check(&tag).is_err() {
                continue;
            }
            let (tag, next) = check(&head, None, cursor, today)?;
            let date = tag.date().unwrap_or(day);
            if date < day {
                let tag = tag.as_str();
                return Err(ChainError(format!(
                    "the gateway was asked for a batch formed on or after {day} and answered with {tag} of {date}"
                ))
                .into());
            }
            return Ok(Some(Found { last: Last { tag, date, etag: head.etag }, next, body }));
        }
        Ok(None)
    }

    /// Which batch follows the last one now.
    async fn link(&self, last: &Last, cursor: &Cursor) -> Result<Known<Option<Tag>>, DownloadError> {
        let etag = last.etag.as_deref();
        let head = match self.repeating(|| self.hear(last.date, Some(&last.tag), etag)).await {
            Ok(Answer::Batch(head, _) | Answer::Unchanged(head)) => head,
            Ok(Answer::NotFound) => return self.unknown(&last.tag, last.date),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let answered = Tag::new(&head.batch_tag)?;
        last.tag.check_answer(&answered)?;
        let next = head.next_batch_tag.as_deref().map(Tag::new).transpose()?;
        if let Some(next) = &next {
            next.check_day(self.today())?;
            cursor.passed.check(next)?;
        }
        if head.etag != last.etag {
            // The batch has lost an upload since. What matters here is the link.
            let expected = last.tag.clone();
            self.with_position(move |position| {
                if let Some(last) = &mut position.cursor.last
                    && last.tag == expected
                {
                    last.etag = head.etag;
                }
                Ok(())
            })
            .await?;
        }
        Ok(Some(next))
    }

    /// A batch that was named.
    async fn fetch(&self, tag: &Tag, date: NaiveDate) -> Result<Known<Found>, DownloadError> {
        let cursor = self.with_position(|position| Ok(position.cursor.clone())).await?;
        match self.ask(date, Some(tag)).await {
            Ok(Some((head, body))) => {
                let (tag, next) = check(&head, Some(tag), &cursor, self.today())?;
                Ok(Some(Found { last: Last { tag, date, etag: head.etag }, next, body }))
            }
            Ok(None) => self.unknown(tag, date),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A batch that the gateway does not know is either too old, or it should know it.
    fn unknown<T>(&self, tag: &Tag, date: NaiveDate) -> Result<Known<T>, DownloadError> {
        if date < oldest(self.today()) {
            return Ok(None);
        }
        let tag = tag.as_str();
        Err(ChainError(format!(
            "the gateway does not know batch {tag} of {date}, which it must still serve: is it a different gateway \
             from before? To start again with this one, download into another folder"
        ))
        .into())
    }

    /// Asks for a batch and reads all of it.
    async fn ask(&self, date: NaiveDate, tag: Option<&Tag>) -> Result<Option<(Head, Body)>, Error> {
        let ask = || async {
            match self.hear(date, tag, None).await? {
                Answer::Batch(head, response) => Ok(Some((head, Body::read(response).await?))),
                Answer::Unchanged(_) | Answer::NotFound => Ok(None),
            }
        };
        self.repeating(ask).await
    }

    /// Makes a call, and repeats it while that can help.
    async fn repeating<T, F>(&self, call: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut failures = 0;
        loop {
            let error = match call().await {
                Err(error) => error,
                answer => return answer,
            };
            let (error, wait) = self.options.retry.after(error, &mut failures, &self.options.clock)?;
            self.tell(&DownloadEvent::Waiting { reason: error.to_string(), seconds: wait.as_secs() });
            time::sleep(wait).await;
        }
    }

    /// Asks for the audit of a batch, verifies it, and if it holds stores it.
    async fn settle(&self, found: Found) -> Result<Result<Released, Box<Bad>>, DownloadError> {
        let Last { tag, date, .. } = &found.last;
        let gateway = &self.options.gateway;
        let audit = self.repeating(|| gateway.ask_audit(*date, tag.as_str())).await?;
        let auditor = self.options.auditor.clone();
        let (today, quarantine, dry_run) = (self.today(), self.quarantine(tag, *date), self.options.dry_run);
        let outcome = self
            .with_position(move |position| {
                let outcome = verify(&auditor, found, audit)
                    .map(|verified| position.release(verified, today))
                    .map_or_else(|bad| Ok(Err(bad)), |released| released.map(Ok))?;
                if outcome.is_ok() && !dry_run {
                    quarantine::resolve(&quarantine)?;
                }
                Ok(outcome)
            })
            .await?;
        if let Ok(released) = &outcome {
            let event = if dry_run { DownloadEvent::WouldStore } else { DownloadEvent::Stored };
            self.tell(&event(released.clone()));
        }
        Ok(outcome)
    }

    fn quarantine(&self, tag: &Tag, date: NaiveDate) -> std::path::PathBuf {
        self.options.state.join("quarantine").join(format!("{date}_{}", tag.as_str()))
    }

    async fn put_aside(&self, bad: Box<Bad>, skip: bool) -> Result<Quarantined, DownloadError> {
        let folder = self.quarantine(&bad.found.last.tag, bad.found.last.date);
        let (today, dry_run) = (self.today(), self.options.dry_run);
        self.with_position(move |position| {
            let Bad { report, found, audit } = *bad;
            let quarantined = match dry_run {
                true => Quarantined::new(&report, None),
                false => quarantine::put_aside(&folder, &report, &found.body, &audit)?,
            };
            if skip {
                let mut cursor = position.cursor.clone();
                cursor.pass(found.last, today);
                if !dry_run {
                    cursor.save(&position.cursor_path)?;
                }
                (position.cursor, position.next) = (cursor, found.next);
            }
            Ok(quarantined)
        })
        .await
    }

    fn told(&self) -> MutexGuard<'_, Option<DateTime<Utc>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a batch once, and keeps the gateway's time in the first answer.
    async fn hear(&self, date: NaiveDate, tag: Option<&Tag>, etag: Option<&str>) -> Result<Answer, Error> {
        let gateway = &self.options.gateway;
        let (answer, time) = gateway.ask(date, tag.map(Tag::as_str), Format::Protobuf, etag).await?;
        let mut told = self.told();
        *told = told.or(time);
        drop(told);
        Ok(answer)
    }

    /// Remembers that nothing was left to fetch. The day is that of the clock that is behind the other: days
    /// that have not ended for the gateway can still get batches, whatever this machine's clock says.
    async fn at_the_end(&self) -> Result<(), DownloadError> {
        let Some(told) = *self.told() else { return Ok(()) };
        if self.options.dry_run {
            return Ok(());
        }
        let today = self.today();
        let certain = (self.options.clock.now().min(told) - SKEW).date_naive();
        self.with_position(move |position| {
            if position.cursor.complete_on.is_some_and(|day| day >= certain && day <= today) {
                return Ok(());
            }
            let mut cursor = position.cursor.clone();
            cursor.complete_on = Some(certain);
            cursor.save(&position.cursor_path)?;
            position.cursor = cursor;
            Ok(())
        })
        .await
    }
}

/// Whether the gateway may answer so: the batch that was asked for, after all before it, and before the next.
fn check(
    head: &Head,
    asked: Option<&Tag>,
    cursor: &Cursor,
    today: NaiveDate,
) -> Result<(Tag, Option<Tag>), ChainError> {
    let tag = Tag::new(&head.batch_tag)?;
    asked.map_or(Ok(()), |asked| asked.check_answer(&tag))?;
    tag.check_day(today)?;
    cursor.passed.check(&tag)?;
    let Some(next) = &head.next_batch_tag else { return Ok((tag, None)) };
    let next = Tag::new(next)?;
    next.check_day(today)?;
    let mut passed = cursor.passed.clone();
    passed.pass(&tag, cursor.last.as_ref().map_or_else(NaiveDate::default, |last| last.date));
    passed.check(&next)?;
    Ok((tag, Some(next)))
}

fn is_gone(error: &Error) -> bool {
    error.is_refusal(410, "gone")
}

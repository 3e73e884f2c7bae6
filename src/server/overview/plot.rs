//! The plot of keys per hour. Drawn by the server, so that the page needs no script for it.

use chrono::{DateTime, Timelike, Utc};
use maud::{Markup, html};

use super::page::{amount, clock, day};
use crate::store::Hour;

/// The width of one hour: a bar and the gap after it.
const STEP: usize = 4;
const BAR: usize = 3;
const HEIGHT: u64 = 160;

/// The plot, with a summary and a table for screen readers.
pub(super) fn plot(hours: &[Hour]) -> Markup {
    let most = hours.iter().map(|hour| hour.keys).max().unwrap_or(0);
    let top = ceiling(most);
    let width = hours.len() * STEP;
    html! {
        figure.plot {
            figcaption { (summary(hours)) }
            div.scale aria-hidden="true" { span { (amount(top)) } span { (amount(top / 2)) } span { "0" } }
            svg viewBox=(format!("0 0 {width} {HEIGHT}")) preserveAspectRatio="none" role="img" aria-label=(summary(hours)) {
                @for line in [0, HEIGHT / 2] {
                    line.grid x1="0" x2=(width) y1=(line) y2=(line) {}
                }
                @for (i, hour) in hours.iter().enumerate() {
                    @if hour.at.hour() == 0 {
                        line.midnight x1=(i * STEP) x2=(i * STEP) y1="0" y2=(HEIGHT) {}
                    }
                    @let height = height(hour.keys, top);
                    @if height > 0 {
                        rect.bar x=(i * STEP) width=(BAR) y=(HEIGHT - height) height=(height) {
                            title { (day(hour.at)) " " (clock(hour.at)) ": " (amount(hour.keys)) " keys in " (amount(hour.uploads)) " uploads" }
                        }
                    }
                }
            }
            // Without a view box, so that the text is not stretched.
            svg.days aria-hidden="true" {
                @for (i, hour) in hours.iter().enumerate().filter(|(i, hour)| hour.at.hour() == 0 && i + 12 < hours.len()) {
                    text x=(format!("{:.2}%", i as f64 * 100.0 / hours.len() as f64)) y="1em" { (hour.at.format("%-d %b")) }
                }
            }
        }
        details id="per-day" {
            summary id="per-day-summary" { "The same by day" }
            div.scroll {
                table {
                    caption.hidden { "Keys uploaded by day" }
                    thead { tr { th scope="col" { "Day (UTC)" } th.number scope="col" { "Uploads" } th.number scope="col" { "Keys" } th.number scope="col" { "Most in an hour" } } }
                    tbody {
                        @for of_day in days(hours) {
                            tr {
                                th scope="row" { (day(of_day[0].at)) }
                                td.number { (amount(of_day.iter().map(|hour| hour.uploads).sum())) }
                                td.number { (amount(of_day.iter().map(|hour| hour.keys).sum())) }
                                td.number { (amount(of_day.iter().map(|hour| hour.keys).max().unwrap_or(0))) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The hours of each calendar day, the newest day first.
fn days(hours: &[Hour]) -> Vec<&[Hour]> {
    let mut days: Vec<_> = hours.chunk_by(|a, b| a.at.date_naive() == b.at.date_naive()).collect();
    days.reverse();
    days
}

fn summary(hours: &[Hour]) -> String {
    let total: u64 = hours.iter().map(|hour| hour.keys).sum();
    let most = hours.iter().max_by_key(|hour| hour.keys).filter(|hour| hour.keys > 0);
    let peak = |hour: &Hour| -> (u64, DateTime<Utc>) { (hour.keys, hour.at) };
    match most.map(peak) {
        None => "No keys were uploaded in the last 14 days.".to_owned(),
        Some((keys, at)) => format!(
            "{} keys in 14 days; the most in one hour: {}, on {} from {} UTC.",
            amount(total),
            amount(keys),
            day(at),
            clock(at)
        ),
    }
}

/// The next round number for an axis: one significant digit, or 25 or 15 and zeros.
fn ceiling(most: u64) -> u64 {
    let mut unit = 1_u64;
    while unit.saturating_mul(10) < most {
        unit *= 10;
    }
    [2, 4, 6, 8, 10]
        .into_iter()
        .map(|n| unit.saturating_mul(n))
        .find(|top| *top >= most)
        .unwrap_or(most)
        .max(2)
}

/// The height of a bar. Even a single key is visible.
fn height(keys: u64, top: u64) -> u64 {
    if keys == 0 { 0 } else { (u128::from(keys) * u128::from(HEIGHT) / u128::from(top)).max(1) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_a_round_number() {
        for (most, top) in
            [(0, 2), (1, 2), (2, 2), (3, 4), (9, 10), (11, 20), (95, 100), (101, 200), (6200, 8000)]
        {
            assert_eq!(ceiling(most), top, "{most}");
        }
        assert!(ceiling(u64::MAX) == u64::MAX);
    }

    #[test]
    fn a_single_key_can_be_seen() {
        assert_eq!(
            (height(0, 1_000_000), height(1, 1_000_000), height(1_000_000, 1_000_000)),
            (0, 1, HEIGHT)
        );
    }
}

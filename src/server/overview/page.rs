//! The operator's page: one self-contained HTML document.
//!
//! It works without its script, which only replaces parts of the page with newer ones.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, TimeDelta, Utc};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use super::{CountryState, Overview, plot::plot};
use crate::health::Severity;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// A certificate is marked this many days before it expires.
const CERTIFICATE_SOON: i64 = 30;

/// Allows the browser only this page's own style and script, and fetching the page again.
pub fn content_security_policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
        format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT)
        )
    });
    &POLICY
}

/// Writes the page.
pub fn page(overview: &Overview) -> String {
    let problems = overview.warnings.iter().filter(|warning| warning.severity == Severity::Problem).count();
    let state = match (problems, overview.warnings.len()) {
        (0, 0) => "All is well".to_owned(),
        (0, 1) => "1 thing to look at".to_owned(),
        (0, n) => format!("{n} things to look at"),
        (1, _) => "1 problem".to_owned(),
        (n, _) => format!("{n} problems"),
    };
    let title = format!("{state} · EFGS gateway");
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) }
                style { (PreEscaped(STYLE)) }
                noscript { meta http-equiv="refresh" content="30"; }
            }
            body {
                a.skip href="#countries-heading" { "To the countries" }
                header {
                    h1 { "EFGS gateway" }
                    p #state .state .problem[problems > 0] .attention[problems == 0 && !overview.warnings.is_empty()] data-live role="status" { (state) }
                    p #at .at data-live { "As of " (time(overview.at)) " UTC" }
                    p #away .state.problem role="alert" hidden {}
                }
                main {
                    section #warnings data-live aria-labelledby="warnings-heading" { (warnings(overview)) }
                    section #notes data-live aria-labelledby="notes-heading" { (notes(overview)) }
                    section aria-labelledby="countries-heading" {
                        h2 id="countries-heading" tabindex="-1" { "Countries" }
                        div #countries data-live { (countries(overview)) }
                    }
                    section aria-labelledby="keys-heading" {
                        h2 id="keys-heading" { "Keys per hour" }
                        div #keys data-live { (plot(&overview.hours)) }
                    }
                    section aria-labelledby="batches-heading" {
                        h2 id="batches-heading" { "Batches" }
                        div #batches data-live { (batches(overview)) }
                    }
                    div.pair {
                        section aria-labelledby="jobs-heading" {
                            h2 id="jobs-heading" { "Jobs of this instance" }
                            div #jobs data-live { (jobs(overview)) }
                        }
                        section aria-labelledby="instances-heading" {
                            h2 id="instances-heading" { "Instances" }
                            div #instances data-live { (instances(overview)) }
                        }
                    }
                }
                footer {
                    p { "Version " (overview.version) ". Also here: "
                        a href="/overview.json" { "this page as JSON" } ", "
                        a href="/health/ready" { "readiness" } ", "
                        a href="/metrics" { "metrics" } ", "
                        a href="/swagger/" { "API document" } "." }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

fn warnings(overview: &Overview) -> Markup {
    html! {
        h2 id="warnings-heading" { "To look at" }
        @if overview.warnings.is_empty() {
            p.empty { "Nothing: every country is served." }
        } @else {
            ul.warnings {
                @for warning in &overview.warnings {
                    @let (class, word) = match warning.severity {
                        Severity::Problem => ("problem", "Problem"),
                        Severity::Attention => ("attention", "Attention"),
                    };
                    li class=(class) { strong { (word) } " " (warning.text) }
                }
            }
        }
    }
}

/// Notes need no attention: they state what the operator has chosen.
fn notes(overview: &Overview) -> Markup {
    html! {
        @if !overview.notes.is_empty() {
            h2 id="notes-heading" { "Good to know" }
            ul.notes { @for note in &overview.notes { li { (note) } } }
        }
    }
}

/// A table whose rows become cards on a narrow screen. The roles keep it a table for screen readers.
fn table(id: &str, caption: &str, columns: &[(&str, bool)], rows: Vec<Vec<Markup>>) -> Markup {
    html! {
        table.cards #(id) role="table" {
            caption.hidden { (caption) }
            thead role="rowgroup" {
                tr role="row" {
                    @for (name, number) in columns {
                        th.number[*number] scope="col" role="columnheader" { (name) }
                    }
                }
            }
            tbody role="rowgroup" {
                @for row in rows {
                    tr role="row" {
                        @for (i, (cell, (name, number))) in row.into_iter().zip(columns).enumerate() {
                            @if i == 0 {
                                th scope="row" role="rowheader" { (cell) }
                            } @else {
                                td.number[*number] role="cell" data-label=(name) { span { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn countries(overview: &Overview) -> Markup {
    const COLUMNS: [(&str, bool); 7] = [
        ("Country", false),
        ("Last upload", false),
        ("Last download", false),
        ("Keys today", true),
        ("Batches behind", true),
        ("Callbacks", false),
        ("Certificates for", true),
    ];
    if overview.countries.is_empty() {
        return html! { p.empty { "No country is registered. Import its certificates: " code { "efgs-gateway certificate import" } } };
    }
    let at = overview.at;
    let rows = overview.countries.iter().map(|country| {
        vec![
            html! { (name(&country.country)) },
            ago(country.last_upload, at),
            ago(country.last_download, at),
            keys_today(country),
            behind(country),
            callbacks(country),
            certificates(country),
        ]
    });
    table("countries-table", "How each country is served", &COLUMNS, rows.collect())
}

fn keys_today(country: &CountryState) -> Markup {
    let percent = country.quota_percent;
    html! {
        (amount(country.keys_today))
        @if country.refused.uploads > 0 { " " span.mark.attention { (country.refused.uploads) " refused" } }
        @if percent >= 80.0 { " " span.mark.attention { (percent) "% of the quota" } }
    }
}

fn behind(country: &CountryState) -> Markup {
    match country.behind {
        None => html! { span.faint { "all" } },
        Some(0) => html! { "0" },
        Some(n) => html! { span.mark.attention[n >= 3] { (amount(n)) } },
    }
}

fn callbacks(country: &CountryState) -> Markup {
    let (active, paused, held) = (country.callbacks, country.callbacks_paused, country.callbacks_held);
    html! {
        @if (active, paused, held) == (0, 0, 0) { span.faint { "none" } }
        @if active > 0 { (active) " active " }
        @if paused > 0 { span.mark.attention { (paused) " paused" } " " }
        @if held > 0 { span.faint { (held) " held" } }
    }
}

fn certificates(country: &CountryState) -> Markup {
    match country.certificate_days {
        None => html! { span.mark.problem { "none" } },
        Some(_) if !country.certificates_missing.is_empty() => {
            html! { span.mark.problem { "no " (country.certificates_missing.join(", ")) } }
        }
        Some(days) if days <= CERTIFICATE_SOON => html! { span.mark.attention { (days) " days" } },
        Some(days) => html! { (days) " days" },
    }
}

fn batches(overview: &Overview) -> Markup {
    const COLUMNS: [(&str, bool); 5] =
        [("Batch", false), ("Formed", false), ("Uploads", true), ("Keys", true), ("Batch tag", false)];
    let waiting = &overview.waiting;
    html! {
        p { "Waiting for the next batch: " (amount(waiting.keys)) " keys in " (amount(waiting.uploads)) " uploads"
            @if let Some(since) = waiting.since { ", the oldest " (ago(Some(since), overview.at)) } "." }
        @if overview.batches.is_empty() {
            p.empty { "No batch has been formed yet." }
        } @else {
            (table("batches-table", "The newest batches", &COLUMNS, overview.batches.iter().map(|batch| vec![
                html! { (batch.day_name) },
                ago(Some(batch.formed_at), overview.at),
                html! { (amount(batch.uploads as u64)) @if batch.withdrawn > 0 { span.faint { " (" (batch.withdrawn) " withdrawn)" } } },
                html! { (amount(batch.keys)) },
                html! { code { (batch.tag) } },
            ]).collect()))
        }
    }
}

fn jobs(overview: &Overview) -> Markup {
    const COLUMNS: [(&str, bool); 3] = [("Job", false), ("Last success", false), ("State", false)];
    let rows = overview.jobs.iter().map(|job| {
        let state = match (&job.last_error, job.stalled) {
            (None, false) => html! { "works" },
            (Some(error), false) => html! { span.mark.attention { "failed: " (error) } },
            (_, true) => html! { span.mark.problem { "stands still" } },
        };
        vec![html! { (job.name) }, html! { (length(job.silent_seconds)) " ago" }, state]
    });
    table("jobs-table", "Jobs of this instance", &COLUMNS, rows.collect())
}

fn instances(overview: &Overview) -> Markup {
    const COLUMNS: [(&str, bool); 4] =
        [("Instance", false), ("Machine", false), ("Runs for", false), ("State", false)];
    let rows = overview.instances.iter().map(|instance| {
        let state = match instance.dead {
            false => html! { "alive, version " (instance.version) },
            true => html! { span.mark.attention { "silent for " (length(instance.silent_seconds)) } },
        };
        vec![
            html! { code { (instance.id) } },
            html! { (instance.host) },
            html! { (length(instance.uptime_seconds)) },
            state,
        ]
    });
    table("instances-table", "Instances of the gateway", &COLUMNS, rows.collect())
}

/// A relative time, with the exact time as its title.
fn ago(at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Markup {
    match at {
        None => html! { span.faint { "never" } },
        Some(at) => html! {
            time datetime=(at.to_rfc3339()) title=(format!("{} UTC", at.format("%Y-%m-%d %H:%M:%S"))) {
                (length((now - at).num_seconds())) " ago"
            }
        },
    }
}

fn time(at: DateTime<Utc>) -> Markup {
    html! { time datetime=(at.to_rfc3339()) { (at.format("%-d %B %Y, %H:%M:%S")) } }
}

/// A day for people.
pub(super) fn day(at: DateTime<Utc>) -> String {
    at.format("%-d %B").to_string()
}

/// Hours and minutes.
pub(super) fn clock(at: DateTime<Utc>) -> String {
    at.format("%H:%M").to_string()
}

/// A duration in its largest unit.
fn length(seconds: i64) -> String {
    let time = TimeDelta::seconds(seconds.max(0));
    match (time.num_days(), time.num_hours(), time.num_minutes()) {
        (_, _, 0) => format!("{} s", time.num_seconds()),
        (_, 0, minutes) => format!("{minutes} min"),
        (0 | 1, hours, _) => format!("{hours} h"),
        (days, ..) => format!("{days} days"),
    }
}

/// A number with thousands separators.
pub(super) fn amount(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.char_indices() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// The code, with the name of the country if it may take part.
fn name(code: &str) -> Markup {
    const NAMES: [(&str, &str); 32] = [
        ("AT", "Austria"),
        ("BE", "Belgium"),
        ("BG", "Bulgaria"),
        ("CH", "Switzerland"),
        ("CY", "Cyprus"),
        ("CZ", "Czechia"),
        ("DE", "Germany"),
        ("DK", "Denmark"),
        ("EE", "Estonia"),
        ("ES", "Spain"),
        ("FI", "Finland"),
        ("FR", "France"),
        ("GB", "United Kingdom"),
        ("GR", "Greece"),
        ("HR", "Croatia"),
        ("HU", "Hungary"),
        ("IE", "Ireland"),
        ("IS", "Iceland"),
        ("IT", "Italy"),
        ("LI", "Liechtenstein"),
        ("LT", "Lithuania"),
        ("LU", "Luxembourg"),
        ("LV", "Latvia"),
        ("MT", "Malta"),
        ("NL", "Netherlands"),
        ("NO", "Norway"),
        ("PL", "Poland"),
        ("PT", "Portugal"),
        ("RO", "Romania"),
        ("SE", "Sweden"),
        ("SI", "Slovenia"),
        ("SK", "Slovakia"),
    ];
    let name = NAMES.iter().find(|(known, _)| *known == code).map(|(_, name)| *name);
    html! { b { (code) } @if let Some(name) = name { " " span.name { (name) } } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_lengths_are_for_people() {
        let narrow = |text: &str| text.replace(' ', "\u{202f}");
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1 000"), (1_234_567, "1 234 567")] {
            assert_eq!(amount(n), narrow(text));
        }
        for (seconds, text) in [
            (-3, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (3600, "1 h"),
            (172_799, "47 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(length(seconds), text);
        }
    }
}

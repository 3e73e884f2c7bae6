//! What the backends of single countries do that need a setting of their own, replayed.

use chrono::{Days, NaiveDate};
use efgs_gateway::config::{ChainScope, TagStyle};
use efgs_protocol::{key::KeyBatch, wire};
use efgs_test_ca::Participant;

use crate::{
    client::{Answer, Client, PROTOBUF, Request, join, keys},
    harness::{Case, PKI, Running, country, tests},
};

tests![
    it_and_nl_read_day_and_number_out_of_the_tag,
    cz_makes_up_the_name_of_a_batch_that_does_not_exist_yet,
    es_walks_seven_days_and_gets_every_key_once,
    fi_downloads_yesterday_and_audits_each_batch_with_the_same_date,
    fi_sends_the_accepted_part_of_a_207_again_at_once,
];

async fn join_as(gateway: &Running, code: &str) -> Client {
    let Participant { authentication, signing, .. } = PKI.participant(country(code)).unwrap();
    gateway.register(&[&authentication, &signing]).await;
    Client::new(gateway.address, Some(&authentication), signing)
}

/// Three batches of DE a day, from six days ago until today; the keys of each day.
async fn seven_days(case: &Case, gateway: &Running) -> Vec<(NaiveDate, Vec<KeyBatch>)> {
    let today = case.clock.now();
    let mut days = Vec::new();
    for ago in (0..7).rev() {
        case.clock.set(today - Days::new(ago));
        let mut batches = Vec::new();
        for number in 0..3 {
            let tag = format!("{ago}-{number}");
            batches.push(gateway.client("DE").upload_new(&tag, number + 1, case.clock.now()).await);
            gateway.form().await;
        }
        days.push((case.today(), batches));
    }
    days
}

/// Follows the chain from the first batch of a date, always with that date.
async fn walk(reader: &Client, date: NaiveDate) -> Vec<Answer> {
    let mut answers = vec![reader.download(date, None).await.expect(200)];
    while let Some(next) = answers.last().map(Answer::next).filter(|next| next != wire::NO_NEXT_BATCH) {
        assert!(answers.len() < 100, "the chain has an end");
        answers.push(reader.download(date, Some(&next)).await.expect(200));
    }
    answers
}

async fn it_and_nl_read_day_and_number_out_of_the_tag(case: &Case) {
    let gateway = case
        .gateway_with(|config| {
            for code in ["IT", "NL"] {
                config.participants.entry(country(code)).or_default().tags = Some(TagStyle::DaySequence);
            }
        })
        .await;
    let days = seven_days(case, &gateway).await;
    for code in ["IT", "NL"] {
        let reader = gateway.client(code);
        let mut expected = days.iter().flat_map(|(day, batches)| {
            (1..=batches.len()).map(move |number| format!("{}-{number}", day.format("%Y%m%d")))
        });
        for answer in walk(&reader, days[0].0).await {
            assert_eq!(Some(answer.tag()), expected.next());
            // What they are told they can ask the audit for.
            reader.audit(days[0].0, &answer.tag()).await.expect(200);
        }
        assert_eq!(expected.next(), None);
    }
}

async fn cz_makes_up_the_name_of_a_batch_that_does_not_exist_yet(case: &Case) {
    let gateway = case.gateway().await;
    let cz = join_as(&gateway, "CZ").await;
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    gateway.form().await;
    let (today, tomorrow) = (case.today(), case.today() + Days::new(1));
    let name = |day: NaiveDate, number: u32| format!("{}-{number}", day.format("%Y%m%d"));
    cz.download(today, Some(&name(today, 1))).await.expect(200);
    for (date, tag) in [(today, name(today, 2)), (tomorrow, name(tomorrow, 1)), (today, name(tomorrow, 1))] {
        cz.download(date, Some(&tag)).await.refused(404, "batch-not-found");
    }
    case.clock.set(case.clock.now() + Days::new(1));
    let sent = gateway.client("DE").upload_new("b", 2, case.clock.now()).await;
    gateway.form().await;
    assert_eq!(cz.download(tomorrow, Some(&name(tomorrow, 1))).await.expect(200).keys(), sent);
}

async fn es_walks_seven_days_and_gets_every_key_once(case: &Case) {
    let gateway = case
        .gateway_with(|config| config.participants.entry(country("ES")).or_default().chain = ChainScope::Day)
        .await;
    let es = join_as(&gateway, "ES").await;
    let days = seven_days(case, &gateway).await;
    for (day, batches) in &days {
        let got: Vec<KeyBatch> = walk(&es, *day).await.iter().map(Answer::keys).collect();
        assert_eq!(&got, batches, "{day}");
    }
}

async fn fi_downloads_yesterday_and_audits_each_batch_with_the_same_date(case: &Case) {
    let gateway = case
        .gateway_with(|config| config.participants.entry(country("FI")).or_default().chain = ChainScope::Day)
        .await;
    let fi = join_as(&gateway, "FI").await;
    let days = seven_days(case, &gateway).await;
    let (yesterday, batches) = &days[5];
    let answers = walk(&fi, *yesterday).await;
    assert_eq!(answers.len(), batches.len());
    for answer in answers {
        let entries = fi.audit(*yesterday, &answer.tag()).await.expect(200).audit();
        assert_eq!(entries.iter().map(|entry| entry.amount as usize).sum::<usize>(), answer.keys().len());
    }
}

async fn fi_sends_the_accepted_part_of_a_207_again_at_once(case: &Case) {
    let gateway = case.gateway().await;
    let fi = join_as(&gateway, "FI").await;
    let known = keys(country("FI"), 2, case.clock.now());
    fi.upload("first", &known).await.expect(201);
    let new = keys(country("FI"), 3, case.clock.now());
    let mixed = join(&[&new, &known]);
    // With a slash behind the path, as FI posts.
    let slash = |request: Request| Request { path: format!("{}/", request.path), ..request };
    let answer = fi.send(slash(fi.request("second", &mixed))).await.expect(207).json();
    assert_eq!(answer, serde_json::json!({"201": [0, 1, 2], "409": [3, 4], "500": []}));
    let accepted: KeyBatch = (0..3).map(|i| mixed.get(i)).collect();
    let request = slash(fi.request("second", &accepted)).header("Accept", "application/octet-stream, */*");
    assert!(fi.send(request).await.expect(201).body.is_empty());
    gateway.form().await;
    let request = Client::download_request(case.today(), None).header("Accept", PROTOBUF);
    assert_eq!(gateway.client("NL").send(request).await.expect(200).keys(), join(&[&known, &new]));
}

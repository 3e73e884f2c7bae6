//! Certificates that the operator denies without the registry.

use std::time::Duration;

use efgs_gateway::server::{App, Gateway};

use crate::{
    client::keys,
    harness::{Case, country, participant, tests, until},
    health::ready,
};

tests![
    what_is_denied_neither_calls_nor_signs,
    a_file_that_is_malformed_or_gone_is_warned_of_and_stays_in_force,
    without_its_file_the_gateway_does_not_start,
];

async fn what_is_denied_neither_calls_nor_signs(case: &Case) {
    let path = case.folder.path().join("denied.txt");
    std::fs::write(&path, "").unwrap();
    let gateway = case.gateway_with(|config| config.trust.deny_file = Some(path.clone())).await;
    let (de, nl) = (participant("DE"), participant("NL"));
    gateway.client("DE").upload_new("a", 1, case.clock.now()).await;
    let [signer, caller] = [&de.signing, &nl.authentication].map(|one| one.certificate.thumbprint());
    std::fs::write(&path, format!("{signer} # lost\n{caller}\n")).unwrap();
    until("the caller is refused", async || {
        (gateway.client("NL").download(case.today(), None).await.status == 403).then_some(())
    })
    .await;
    let refused = gateway.client("DE").upload("b", &keys(country("DE"), 1, case.clock.now())).await;
    let message = refused.refused(400, "untrusted-signer");
    assert!(message.contains("denied"), "{message}");
    // And again, when it is no longer denied.
    std::fs::write(&path, "").unwrap();
    until("the caller is admitted", async || {
        (gateway.client("NL").download(case.today(), None).await.status == 404).then_some(())
    })
    .await;
    gateway.client("DE").upload_new("b", 1, case.clock.now()).await;
}

async fn a_file_that_is_malformed_or_gone_is_warned_of_and_stays_in_force(case: &Case) {
    let path = case.folder.path().join("denied.txt");
    let caller = participant("NL").authentication.certificate.thumbprint();
    std::fs::write(&path, format!("nonsense\n{caller}\n")).unwrap();
    let gateway = case.gateway_with(|config| config.trust.deny_file = Some(path.clone())).await;
    let warned = async |text: &str| {
        until("the warning", async || {
            ready(&gateway).await.1["warnings"].to_string().contains(text).then_some(())
        })
        .await;
    };
    warned("no thumbprint in line 1").await;
    gateway.client("NL").download(case.today(), None).await.refused(403, "forbidden");
    std::fs::remove_file(&path).unwrap();
    warned("its last content stays in force").await;
    gateway.client("NL").download(case.today(), None).await.refused(403, "forbidden");
    std::fs::write(&path, format!("{caller}\n")).unwrap();
    until("no warning", async || {
        (!ready(&gateway).await.1["warnings"].to_string().contains("deny_file")).then_some(())
    })
    .await;
    gateway.client("NL").download(case.today(), None).await.refused(403, "forbidden");
}

async fn without_its_file_the_gateway_does_not_start(case: &Case) {
    let mut config = case.config();
    config.trust.deny_file = Some(case.folder.path().join("nowhere.txt"));
    config.database.timeout = Duration::from_secs(5);
    let app = App::new(config, case.clock.clone(), None).unwrap();
    let error = Gateway::start(app.clone(), true).await.unwrap_err().to_string();
    assert!(error.contains("`trust.deny_file`") && error.contains("nowhere.txt"), "{error}");
    app.store.clone().close().await;
}

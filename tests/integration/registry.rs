//! The registry of certificates, as it changes, is tampered with, or is unreachable (spec §6.1.3).

use std::time::{Duration, Instant};

use efgs_gateway::server::App;
use efgs_protocol::{certificate::CertificateType, wire};
use efgs_test_ca::Request as CertificateRequest;

use crate::{
    client::{Client, PROTOBUF, Request, keys},
    harness::{Case, PKI, Running, country, import, participant, tests, until},
};

tests![
    several_instances_migrate_an_empty_database_at_once,
    an_older_version_runs_on_a_newer_schema,
    a_bundle_that_is_imported_again_mends_its_row,
    a_revocation_holds_on_a_connection_that_is_open_already,
    an_import_and_a_revocation_take_effect_on_every_instance,
    a_row_that_was_tampered_with_is_as_good_as_absent,
    when_the_registry_cannot_be_loaded_every_caller_is_rejected,
    a_row_signed_by_another_anchor_does_not_count,
];

const REFRESH: Duration = Duration::from_secs(1);

async fn a_revocation_holds_on_a_connection_that_is_open_already(case: &Case) {
    let gateway = case.gateway_with(|config| config.trust.refresh = REFRESH).await;
    let mut connection = gateway.client("DE").connect();
    let get = Client::download_request(case.today(), None).raw();
    connection.write(&get).unwrap();
    connection.answer().refused(404, "batch-not-found");
    let thumbprint = participant("DE").authentication.certificate.thumbprint();
    gateway.app.store.revoke_certificate(thumbprint, case.clock.now()).await.unwrap();
    let revoked = Instant::now();
    let refusal = until("the revocation takes effect", async || {
        connection.write(&get).unwrap();
        let answer = connection.answer();
        (answer.status != 404).then_some(answer)
    })
    .await;
    let message = refusal.refused(403, "forbidden");
    assert!(message.contains("has been revoked") && message.contains(&thumbprint.to_string()), "{message}");
    // Twice as long as is promised, because the machine may be busy.
    assert!(revoked.elapsed() < 2 * REFRESH, "{:?}", revoked.elapsed());
}

async fn an_import_and_a_revocation_take_effect_on_every_instance(case: &Case) {
    let refresh = |config: &mut efgs_gateway::config::Config| config.trust.refresh = REFRESH;
    let (one, other) = (case.gateway_with(refresh).await, case.gateway_with(refresh).await);
    let kind = CertificateType::Authentication;
    let identity = PKI.identity(country("DE"), kind, &CertificateRequest::new(kind, "DE")).unwrap();
    let client = other.client_with(Some(&identity), "DE");
    client.download(case.today(), None).await.refused(403, "forbidden");
    import(&one.app, &identity.bundle).await;
    let becomes = async |status: u16| {
        until("the change takes effect", async || {
            (client.download(case.today(), None).await.status == status).then_some(())
        })
        .await;
    };
    becomes(404).await;
    one.app.store.revoke_certificate(identity.certificate.thumbprint(), case.clock.now()).await.unwrap();
    becomes(403).await;
}

async fn refused(gateway: &Running) -> Vec<String> {
    gateway.reload().await;
    gateway.app.trust.registry().unwrap().refused().to_vec()
}

async fn a_row_that_was_tampered_with_is_as_good_as_absent(case: &Case) {
    let gateway = case.gateway().await;
    let client = gateway.client("DE");
    let german = participant("DE");
    let hex = german.authentication.certificate.thumbprint().to_string();
    let row = format!("WHERE thumbprint = X'{hex}'");
    let id = case.db.number(&format!("SELECT id FROM certificate {row}")).await;
    let dutch = participant("NL");
    let pem = dutch.authentication.certificate.pem();
    let others_hex = german.callback.certificate.thumbprint().to_string();
    let operator_signature = &dutch.authentication.bundle.operator_signature;
    let registration_signature = &german.signing.bundle.registration_signature;
    let crlf = german.authentication.certificate.pem().replace('\n', "\r\n");
    let changes = [
        ("country", "country = 'NL'".to_owned(), "country"),
        ("use", "type = 'SIGNING'".to_owned(), "registration signature"),
        ("unknown use", "type = 'ROOT'".to_owned(), "type"),
        ("certificate", format!("pem = '{pem}'"), "thumbprint"),
        ("form of the PEM", format!("pem = '{crlf}'"), "PEM"),
        ("thumbprint", format!("thumbprint = X'{}'", "ab".repeat(32)), "thumbprint"),
        ("operator signature", format!("operator_signature = '{operator_signature}'"), "operator signature"),
        (
            "registration signature",
            format!("registration_signature = '{registration_signature}'"),
            "registration signature",
        ),
        ("empty signature", "registration_signature = ''".to_owned(), "registration signature"),
    ];
    assert_ne!(hex, others_hex);
    assert_eq!(refused(&gateway).await, Vec::<String>::new());
    client.download(case.today(), None).await.refused(404, "batch-not-found");
    for (what, change, reason) in changes {
        assert_eq!(case.db.execute(&format!("UPDATE certificate SET {change} WHERE id = {id}")).await, 1);
        let refused = refused(&gateway).await;
        assert_eq!(refused.len(), 1, "{what}: {refused:?}");
        assert!(
            refused[0].starts_with(&format!("certificate row {id} (")) && refused[0].contains(reason),
            "{what}: {refused:?}"
        );
        let named = refused[0].contains(&format!("(AUTHENTICATION of DE, thumbprint {hex}):"));
        assert_eq!(named, !["country", "use", "unknown use", "thumbprint"].contains(&what), "{refused:?}");
        client.download(case.today(), None).await.refused(403, "forbidden");
        // The other rows still count.
        gateway.client("NL").download(case.today(), None).await.refused(404, "batch-not-found");
        // Put the row back.
        case.db.execute(&format!("DELETE FROM certificate WHERE id = {id}")).await;
        import(&gateway.app, &german.authentication.bundle).await;
        let back = case.db.number(&format!("SELECT id FROM certificate {row}")).await;
        case.db.execute(&format!("UPDATE certificate SET id = {id} WHERE id = {back}")).await;
        gateway.reload().await;
        client.download(case.today(), None).await.refused(404, "batch-not-found");
    }
}

async fn when_the_registry_cannot_be_loaded_every_caller_is_rejected(case: &Case) {
    let gateway = case.gateway_with(|config| config.trust.refresh = REFRESH).await;
    let client = gateway.client("DE");
    let keys = keys(country("DE"), 1, case.clock.now());
    client.upload("a", &keys).await.expect(201);
    case.db.execute("ALTER TABLE certificate RENAME TO certificate_renamed").await;
    let gone = Instant::now();
    let get = Client::download_request(case.today(), None);
    let refusal = until("the registry is too old", async || {
        let answer = client.send(get.clone()).await;
        (answer.status != 404).then_some(answer)
    })
    .await;
    let message = refusal.refused(503, "unavailable");
    assert!(!message.contains("certificate_renamed"), "{message}");
    assert!(refusal.header("retry-after").unwrap().ends_with(" GMT"));
    assert!(gone.elapsed() < 2 * REFRESH, "{:?}", gone.elapsed());
    client.upload("b", &keys).await.refused(503, "unavailable");
    client.send(Request::get("/diagnosiskeys/audit/download/x/y")).await.refused(503, "unavailable");
    client.send(Request::new("OPTIONS", wire::ROOT_PATH)).await.expect(200);
    case.db.execute("ALTER TABLE certificate_renamed RENAME TO certificate").await;
    until("the registry is back", async || {
        (client.send(get.clone().header("Accept", PROTOBUF)).await.status == 404).then_some(())
    })
    .await;
}

async fn a_row_signed_by_another_anchor_does_not_count(case: &Case) {
    let gateway = case.gateway().await;
    let other = efgs_test_ca::Pki::new(efgs_test_ca::KeyKind::Ec256).unwrap();
    let intruder = other.participant(country("DE")).unwrap();
    gateway.register(&[&intruder.authentication, &intruder.signing]).await;
    assert_eq!(refused(&gateway).await.len(), 2);
    let client = gateway.client_with(Some(&intruder.authentication), "DE");
    client.download(case.today(), None).await.refused(403, "forbidden");
    let keys = keys(country("DE"), 1, case.clock.now());
    let client = gateway.client("DE").signing_with(&intruder.signing);
    client.upload("a", &keys).await.refused(400, "untrusted-signer");
}

async fn several_instances_migrate_an_empty_database_at_once(case: &Case) {
    let apps: Vec<_> = (0..4).map(|_| App::new(case.config(), case.clock.clone(), None).unwrap()).collect();
    let (a, b, c, d) = tokio::join!(
        apps[0].store.migrate(),
        apps[1].store.migrate(),
        apps[2].store.migrate(),
        apps[3].store.migrate()
    );
    for done in [a, b, c, d] {
        done.unwrap();
    }
    assert!(apps[0].store.schema_is_current().await.unwrap());
    for app in apps {
        app.store.clone().close().await;
    }
}

async fn an_older_version_runs_on_a_newer_schema(case: &Case) {
    let app = App::new(case.config(), case.clock.clone(), None).unwrap();
    app.store.migrate().await.unwrap();
    case.db
        .execute("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m9999_from_the_future', 1)")
        .await;
    assert!(app.store.schema_is_current().await.unwrap());
    app.store.migrate().await.unwrap();
    assert!(!app.store.is_empty().await.unwrap());
    app.store.clone().close().await;
}

async fn a_bundle_that_is_imported_again_mends_its_row(case: &Case) {
    let gateway = case.gateway().await;
    case.db.execute("UPDATE certificate SET operator_signature = 'AAAA' WHERE country = 'NL'").await;
    gateway.reload().await;
    gateway.client("NL").download(case.today(), None).await.refused(403, "forbidden");
    let bundle = &participant("NL").authentication.bundle;
    let new = efgs_gateway::store::NewCertificate {
        thumbprint: bundle.certificate.thumbprint(),
        kind: bundle.kind,
        country: bundle.country.to_string(),
        pem: bundle.certificate.pem().to_owned(),
        operator_signature: bundle.operator_signature.clone(),
        registration_signature: bundle.registration_signature.clone(),
        waived: String::new(),
        waived_by: String::new(),
        waived_because: String::new(),
    };
    assert!(gateway.app.store.renew_certificate(&new).await.unwrap());
    assert!(!gateway.app.store.renew_certificate(&new).await.unwrap());
    gateway.reload().await;
    gateway.client("NL").download(case.today(), None).await.refused(404, "batch-not-found");
}

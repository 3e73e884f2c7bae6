//! The cost of the access log and of tracing for a download: the gateway beside a variant without them.
//!
//! The access log has no switch, and tracing that is off is still in the program, so the variants are built for this.

use std::{net::TcpListener, path::Path, time::Duration};

use efgs_protocol::wire;

use crate::{
    Outcome,
    database::Kind,
    download::{PROTOBUF, Repeated, chain, download, fill, get},
    gateway::{Gateway, Site, build_variant},
    load::Turns,
    report::{Line, Report},
    uploads::now,
};

pub(crate) async fn measure(program: &Path, kind: Kind, time: Duration, report: &mut Report) -> Outcome {
    let unrecorded = build_variant("unrecorded", "bench-unrecorded")?;
    // Spans are of the level below, and logs of a request that went well are off anyway.
    let untraced = build_variant("untraced", "tracing/release_max_level_debug")?;
    // What is released is what lies under the gateway's own name afterwards.
    crate::gateway::build()?;
    report.progress(format!("costs on {}", kind.name()));
    let site = Site::new(program, kind).await?;
    let day = now().date_naive();
    let tag = {
        let gateway = site.start("")?;
        fill(&site, &gateway).await?;
        chain(&site, &gateway, day).await?.remove(0)
    };
    let known = [("Accept", PROTOBUF), (wire::BATCH_TAG, &*tag), ("If-None-Match", "*")];
    let known = get(&format!("{}/{day}", wire::DOWNLOAD_PATH), &known);
    let requests = [
        ("download, protobuf", 1, 200, download(day, &tag, PROTOBUF)),
        ("download, protobuf", 8, 200, download(day, &tag, PROTOBUF)),
        ("download, 304", 8, 304, known),
    ];
    // One collector is absent, the other never answers.
    let absent = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let tracing = |address| format!("[tracing]\nendpoint = \"http://{address}/v1/traces\"\n");
    let absent = tracing(absent);
    let hangs = tracing(silent.local_addr()?);
    for (what, more, beside, variant) in [
        ("the gateway twice", "", "itself", program),
        ("access log", "", "without it", &*unrecorded),
        ("tracing, off", "", "without it", &*untraced),
        ("tracing, collector away", &*absent, "off", program),
        ("tracing, collector hangs", &*hangs, "off", program),
    ] {
        let pair = [site.start(more)?, site.start_variant(variant, "")?];
        for (name, connections, status, request) in &requests {
            let tls = site.reader(true)?;
            let side = |gateway: &Gateway| {
                let processes = gateway.processes(kind);
                let side = Repeated::new(gateway.port, &tls, *connections, request.clone(), processes)?;
                Outcome::Ok(side.answered(*status))
            };
            let [mut own, mut other] = [side(&pair[0])?, side(&pair[1])?];
            let mut turns = Turns::new(time);
            while turns.another() {
                own.turn().await?;
                other.turn().await?;
            }
            let line = Line::new(format!("{what}: {name}"), *connections, &own.side);
            report.add(line.beside(beside, &other.side, &own.side));
        }
    }
    site.schema.remove().await
}

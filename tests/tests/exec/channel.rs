//! Under PM2, as a program that PM2 knows nothing of (`interpreter: none`).

use crate::stage::{RATE, Stage};
use anyhow::{Context, Result};
use e2e::{
    alone,
    app::NAME,
    load::Load,
    place,
    pm2::{NEWEST, Pm2},
    ports,
    sidecar::Sidecar,
    site::VERSIONS,
};
use serde_json::{Value, json};
use std::fs;

/// Two workers whose app handles no signal, each behind `handoff exec`.
fn ecosystem(stage: &Stage, settings: &Value) -> Result<Value> {
    let heeds = place::root().join("tests/tests/exec/heeds.cjs");
    let mut app = json!({
        "name": NAME,
        "script": place::handoff()?,
        "interpreter": "none",
        "args": ["exec", "--health", "/health", "--", "node", "-r", heeds, place::server_js()?],
        "instances": 2,
        "increment_var": "PORT",
        "kill_timeout": 4000,
        "env": {
            "PORT": stage.port(0),
            "BEHAVIOUR": "naive",
            "ORDERS": stage.site.file("orders"),
            "HANDOFF_CONTROL": format!("unix:{}", stage.site.socket().display()),
        },
    });
    let (app_settings, more) = (app.as_object_mut(), settings.as_object());
    app_settings.context("no app")?.extend(more.context("no settings")?.clone());
    Ok(json!({ "apps": [app] }))
}

async fn reload(settings: &Value, with_sidecar: bool) -> Result<()> {
    let stage = Stage::set(VERSIONS[1]).await?;
    let home = stage.site.place().pm2_home();
    let pm2 = Pm2::start_file(NEWEST, &home, &ecosystem(&stage, settings)?, &[]).await?;
    stage.serves(0).await?;
    stage.serves(1).await?;
    let addresses = [0, 1].map(|worker| ports::address(stage.port(worker)));
    let sidecar =
        if with_sidecar { Some(Sidecar::start(stage.site.place(), &addresses).await?) } else { None };
    let load = Load::start(ports::address(stage.site.port()), RATE);
    pm2.reload().await?;
    stage.serves(0).await?;
    stage.serves(1).await?;
    let visits = load.stop().await;
    println!(
        "{settings}, sidecar {with_sidecar}: {} of {} failed",
        stage.judge(&visits)?.len(),
        visits.len()
    );
    assert_eq!(stage.judge(&visits)?, [""; 0], "of {}", visits.len());
    for worker in [0, 1] {
        let said = fs::read_to_string(home.join(format!("logs/{NAME}-error-{worker}.log")))?;
        assert!(said.contains("nginx has nothing left with it") && !said.contains("WARN"), "{said}");
    }
    if let Some(sidecar) = sidecar {
        sidecar.stop()?;
    }
    drop(pm2);
    stage.site.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pm2s_word_waits_for_nginx_where_pm2_stops_by_message() -> Result<()> {
    let _alone = alone::take()?;
    reload(&json!({ "shutdown_with_message": true }), false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pm2s_signal_waits_for_nginx_where_it_comes_to_handoff_alone() -> Result<()> {
    let _alone = alone::take()?;
    reload(&json!({ "treekill": false }), true).await
}

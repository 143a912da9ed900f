//! What `pm2 reload` would do, as PM2 itself tells us.

use crate::{
    pm2::{Pm2, until},
    tap::Proxy,
};
use handoff::pm2::{
    PmId,
    home::Home,
    orders::{Orders, OrdersError, Request},
    rpc::Rpc,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, env, fs, path::Path, time::SystemTime};

/// Two workers on ports of their own, and two without.
fn apps(v: &str) -> Value {
    json!([
        { "name": "shop", "instances": 2, "exec_mode": "fork", "increment_var": "PORT",
          "env": { "PORT": "21000", "V": v, "HOME": "/of/the/file" }, "env_production": { "V": "production" } },
        { "name": "jobs", "instances": 2, "exec_mode": "fork", "env": { "V": v } },
    ])
}

fn ids(orders: &Orders) -> Vec<u32> {
    orders.reload.keys().map(|id| id.0).collect()
}

async fn obey(pm2: &Pm2, orders: &Orders) {
    for (&id, env) in &orders.reload {
        let lives = || pm2.facts("ready").iter().filter(|fact| fact.worker == id).count();
        let before = lives();
        pm2.rpc().await.reload(id, Some(env)).await.unwrap();
        until("it is ready", || lives() > before);
    }
}

/// Number, port, instance and V of every worker of an app, as its process sees them.
async fn lives(pm2: &Pm2, app: &str) -> Vec<(Option<String>, Option<String>, String)> {
    let workers = pm2.list().await.into_iter().filter(|worker| worker.app == app);
    let lives = workers.map(|worker| pm2.life(worker.id));
    lives.map(|life| (life.port, life.instance, life.v.unwrap())).collect()
}

fn life(port: &str, instance: &str, v: &str) -> (Option<String>, Option<String>, String) {
    (Some(port.into()), Some(instance.into()), v.into())
}

pub async fn are_what_the_command_line_sends(pm2: &Pm2) {
    pm2.start_apps(apps("1")).await;
    let file = pm2.file("next.json", &pm2.ecosystem(apps("2")));
    let between = pm2.path("proxy");
    fs::create_dir(&between).unwrap();
    let proxy = Proxy::new(&between.join("rpc.sock"), &pm2.home().rpc());
    let home = Home::new(&between);
    let plain = Request::default();
    let requests = [
        Request { target: "jobs", ..plain },
        Request { target: "1", ..plain },
        Request { target: "jobs", update_env: true, ..plain },
        Request { target: &file, only: Some("jobs,new"), env: Some("production"), ..plain },
    ];
    for request in requests {
        let mut arguments = vec!["reload", request.target];
        for (name, value) in [("--only", request.only), ("--env", request.env)] {
            arguments.extend(value.into_iter().flat_map(|value| [name, value]));
        }
        if request.update_env {
            arguments.push("--update-env");
        }
        let mut sent = BTreeMap::new();
        let before = proxy.orders("reloadProcessId").len();
        let mut command = pm2.cell.command(&between, &arguments);
        // As our own child sees it.
        command.env("PATH", env::var_os("PATH").unwrap());
        assert!(command.status().unwrap().success(), "{arguments:?}");
        for order in proxy.orders("reloadProcessId").split_off(before) {
            let id = order["id"].as_u64().or_else(|| order["id"].as_str()?.parse().ok()).unwrap();
            sent.insert(PmId(u32::try_from(id).unwrap()), order["env"].clone());
        }

        let mut rpc = Rpc::connect(&home).await.unwrap();
        let orders = Orders::ask(&home, &mut rpc, &request).await.unwrap();
        let told = orders.reload.iter().map(|(&id, env)| (id, serde_json::from_str(env.get()).unwrap()));
        assert!(!sent.is_empty());
        assert!(told.collect::<BTreeMap<_, Value>>() == sent, "{arguments:?}: what is sent differs");
    }
}

pub async fn change_every_worker_and_none_of_their_ports(pm2: &Pm2) {
    pm2.start_apps(apps("1")).await;
    assert_eq!(lives(pm2, "shop").await, [life("21000", "0", "1"), life("21001", "1", "1")]);

    let mut changed = apps("2");
    changed.as_array_mut().unwrap().push(json!({ "name": "new", "env": { "V": "2" } }));
    let file = pm2.file("next.json", &pm2.ecosystem(changed));
    let orders = pm2.orders(&Request { target: &file, ..Request::default() }).await.unwrap();
    assert_eq!(ids(&orders), [0, 1, 2, 3]);
    assert_eq!(orders.prepare.iter().map(|app| app.name.as_str()).collect::<Vec<_>>(), ["new"]);
    assert_eq!(orders.warnings, ["Applications new not running, starting..."]);
    obey(pm2, &orders).await;
    assert_eq!(lives(pm2, "shop").await, [life("21000", "0", "2"), life("21001", "1", "2")]);
    pm2.rpc().await.prepare(&orders.prepare[0].app).await.unwrap();
    assert_eq!(pm2.list().await.last().unwrap().app, "new");

    let script = format!("module.exports = {};", pm2.ecosystem(apps("3")));
    let file = pm2.file("next.config.js", &script);
    let request =
        Request { target: &file, env: Some("production"), only: Some("shop"), ..Request::default() };
    let orders = pm2.orders(&request).await.unwrap();
    assert_eq!(orders.reload.len(), 2);
    obey(pm2, &orders).await;
    assert_eq!(
        lives(pm2, "shop").await,
        [life("21000", "0", "production"), life("21001", "1", "production")]
    );

    let request = Request { target: "shop", update_env: true, ..Request::default() };
    obey(pm2, &pm2.orders(&Request { target: "shop", ..Request::default() }).await.unwrap()).await;
    assert_eq!(pm2.life(PmId(0)).home.as_deref(), Some("/of/the/file"));
    obey(pm2, &pm2.orders(&request).await.unwrap()).await;
    assert_eq!(pm2.life(PmId(0)).home, env::var("HOME").ok());
    assert_eq!(
        lives(pm2, "shop").await,
        [life("21000", "0", "production"), life("21001", "1", "production")]
    );

    // Where PM2 counts nothing up, a port in the file is the port of the worker: that is said before it is done.
    let mut moved = apps("4");
    moved[1]["env"]["PORT"] = json!(22000);
    let file = pm2.file("first.json", &pm2.ecosystem(moved.clone()));
    let request = Request { target: &file, only: Some("jobs"), ..Request::default() };
    let orders = pm2.orders(&request).await.unwrap();
    let jobs = *orders.reload.keys().next().unwrap();
    assert_eq!(orders.moved_port(jobs), None, "it had none");
    obey(pm2, &orders).await;
    moved[1]["env"]["PORT"] = json!(23000);
    let file = pm2.file("second.json", &pm2.ecosystem(moved));
    let orders = pm2.orders(&Request { target: &file, ..request }).await.unwrap();
    assert_eq!(orders.moved_port(jobs), Some((22000, 23000)));
}

/// All that is in a directory but PM2's own log, and when it was written.
fn snapshot(dir: &Path) -> BTreeMap<String, SystemTime> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let entries = entries.flat_map(|entry| {
        let name = entry.path().display().to_string();
        let meta = entry.metadata().unwrap();
        let below = if meta.is_dir() { snapshot(&entry.path()) } else { BTreeMap::new() };
        below.into_iter().chain([(name, meta.modified().unwrap())])
    });
    entries.filter(|(name, _)| !name.ends_with("pm2.log")).collect()
}

pub async fn change_nothing_and_say_what_is_wrong(pm2: &Pm2) {
    pm2.start_apps(apps("1")).await;
    let home = pm2.home();
    // The command line would put it back.
    fs::remove_file(home.path().join("touch")).unwrap();
    let before = (snapshot(home.path()), pm2.list().await);
    let plain = Request::default();

    let target = pm2.file("next.json", &pm2.ecosystem(apps("2")));
    let orders = pm2.orders(&Request { target: &target, env: Some("nope"), ..plain }).await.unwrap();
    assert_eq!(orders.reload.len(), 4);
    assert_eq!(orders.warnings, ["Environment [nope] is not defined in process file"]);
    assert_eq!(ids(&pm2.orders(&Request { target: "all", ..plain }).await.unwrap()), [0, 1, 2, 3]);

    let fault = async |target: &str| pm2.orders(&Request { target, ..plain }).await.unwrap_err();
    let unknown = fault("nobody").await;
    assert!(matches!(unknown, OrdersError::Unknown(_)));
    assert_eq!(unknown.to_string(), "Process or Namespace nobody not found");
    assert!(fault("99").await.to_string().contains("99"));
    let missing = pm2.path("missing.json").display().to_string();
    assert_eq!(fault(&missing).await.to_string(), format!("PM2: File {missing} not found"));
    for (name, text, reason) in [
        (
            "bad.config.js",
            "module.exports = {\n  S: 'planted-secret' S",
            "bad.config.js:2: Unexpected identifier",
        ),
        ("bad.json", r#"{"env": {"S": "planted-secret"} "x"}"#, "Unexpected string"),
        ("bad.yml", "apps:\n - name: shop\n  env: [planted-secret", "(3:3)"),
        ("thrown.config.js", "throw new Error('no such stage\\nplanted-secret')", "no such stage"),
    ] {
        let file = pm2.file(name, text);
        let error = fault(&file).await.to_string();
        assert!(error.starts_with(&format!("PM2: File {file} malformated: ")), "{error}");
        assert!(error.contains(reason) && !error.contains("planted-secret"), "{error}");
    }
    let silent = pm2.file("exits.config.js", "console.log('x'.repeat(1e6)); process.exit(3)");
    assert_eq!(fault(&silent).await.to_string(), "PM2: PM2 gives no reason (exit code 3)");

    assert!((snapshot(home.path()), pm2.list().await) == before, "something changed in {home}");
}

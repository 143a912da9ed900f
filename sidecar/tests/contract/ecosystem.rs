//! What an ecosystem file says, as PM2 itself reads it.

use crate::pm2::Pm2;
use handoff::doctor::{
    ecosystem::{self, Pm2Code},
    facts::{EcosystemFile, FileApp},
};
use std::path::Path;

const SCRIPT: &str = r"
    console.log('a file may say what it likes');
    module.exports = { apps: [{
      name: 'shop', script: 'a.js', exec_mode: 'cluster', instances: 'max', wait_ready: true, min_uptime: '3s',
      max_restarts: 5, env: { SECRET: 'planted-secret' }, env_production: { PORT: 3000, SECRET: 'planted-secret' },
    }] };
";
const JSON: &str = "{ /* as in JavaScript */ apps: [{ name: 'jobs', cmd: 'a.js', treekill: false, env: { PORT: '4000' } }] }";
const YAML: &str = "apps:\n  - script: blog.js\n    kill_timeout: 9000\n";

pub async fn is_read_as_pm2_reads_it(pm2: &Pm2) {
    pm2.start_apps(serde_json::json!([{ "name": "any" }])).await;
    let code = Pm2Code::of(&pm2.home()).await.unwrap();
    let read = async |name: &str, text: &str| -> EcosystemFile {
        ecosystem::read(Path::new(&pm2.file(name, text)), &code).await.unwrap()
    };
    let script = read("eco.config.js", SCRIPT).await;
    assert!(!format!("{script:?}").contains("planted-secret"));
    let default = || FileApp { treekill: Some(true), ..FileApp::default() };
    let shop = FileApp {
        name: "shop".into(),
        exec_mode: Some("cluster_mode".into()),
        wait_ready: Some(true),
        min_uptime: Some(3000),
        max_restarts: Some(5),
        ports: [("env_production".to_owned(), 3000)].into(),
        envs: vec!["production".into()],
        ..default()
    };
    assert_eq!((script.apps, script.refused), (vec![shop], None));
    let jobs = FileApp {
        name: "jobs".into(),
        treekill: Some(false),
        ports: [("env".to_owned(), 4000)].into(),
        ..default()
    };
    assert_eq!(read("eco.json", JSON).await.apps, [jobs]);
    let blog = FileApp { name: "blog".into(), kill_timeout: Some(9000), ..default() };
    assert_eq!(read("eco.yaml", YAML).await.apps, [blog]);

    let wrong = read("wrong.config.js", "\nmodule.exports = { apps: [{ name: 3x }] }").await;
    let says = wrong.refused.unwrap();
    assert!(says.contains("wrong.config.js:2: ") && says.contains("Invalid or unexpected token"), "{says}");
    let ends = read("ends.config.js", "process.exit(0)").await;
    assert_eq!(ends.refused.as_deref(), Some("the file ends the process that reads it"));
}

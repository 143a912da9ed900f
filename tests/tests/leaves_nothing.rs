//! A stage that is torn down, however that comes, leaves no process behind.

use e2e::{
    app::{App, Behaviour, Mode},
    conf::{Conf, Tuning},
    lives,
    nginx::{Binary, Nginx},
    place::Place,
    pm2::{self, Pm2},
    ports, process,
};

#[tokio::test]
async fn pm2_its_workers_and_nginx_end_with_the_values_that_stand_for_them() {
    let place = Place::new().unwrap();
    let app = App::new(Behaviour::Graceful, Mode::Fork, 2, place.path()).unwrap();
    let pm2 = Pm2::start(pm2::NEWEST, &place.pm2_home(), &app).await.unwrap();
    let (port, tuning) = (ports::row(1).unwrap(), Tuning::Stock);
    let conf = Conf { port, servers: app.addresses(), tuning, non_idempotent: false };
    let binary = Binary::find(None).await.unwrap();
    let nginx = Nginx::start(&binary, &place.nginx_prefix(), &conf).await.unwrap();

    let workers: Vec<u32> = lives::read(&app.lives()).unwrap().iter().map(|life| life.worker).collect();
    let mut pids = pm2.processes();
    assert_eq!(workers.len(), 2);
    assert!(workers.iter().all(|worker| pids.contains(worker)), "{workers:?} in {pids:?}");
    assert!(pids.len() > workers.len(), "and the daemon");
    pids.push(nginx.pid());
    pids.extend(process::descendants(nginx.pid()));
    assert!(pids.iter().all(|&pid| process::is_alive(pid)));

    drop((nginx, pm2));
    for pid in pids {
        process::death(pid).await.unwrap();
    }
    let path = place.path().to_path_buf();
    drop(place);
    assert!(!path.exists());
}

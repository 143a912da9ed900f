//! Everything that can be found. docs/api/doctor.md has the same, which a test sees to.

use super::finding::{Kind, Severity};

macro_rules! catalogue {
    ($($name:ident $id:literal $severity:ident $what:literal $why:literal $mend:literal $docs:literal;)*) => {
        $(pub const $name: &Kind = &Kind {
            id: $id, severity: Severity::$severity, what: $what, why: $why, mend: $mend, docs: $docs,
        };)*
        pub const ALL: &[&Kind] = &[$($name),*];
    };
}

catalogue! {
// nginx, whatever is in front of it
NGINX_REFUSED "nginx-refused" Error
    "nginx does not take its configuration"
    "A running nginx goes on with the old one, and does not start again."
    "what nginx says"
    "docs/api/doctor.md";
ADDRESS "nginx-address" Warning
    "`proxy_pass` to an address, without an `upstream` block"
    "Nobody can say anything of such an upstream: it takes part in nothing, keeps no connections and has no second server. \
     A refused connection is 502 at once (of more than 1 000 refused none was repaired)."
    "an `upstream` with that server, and `proxy_pass http://NAME`"
    "nginx-conf/production.conf";
ONE_SERVER "nginx-one-server" Warning
    "an upstream with one server and without `handoff`"
    "nginx knows addresses, not workers: with one server there is no next one to try, whatever `proxy_next_upstream` and its \
     tries say. Only what fails on a connection that was kept is tried once more (`pm2 reload` of four workers in cluster mode: \
     7 of 8 725 failed; of an only one in fork mode 854 of 5 698)."
    "`handoff;`, which repeats at the same address when another worker is behind it, and has requests wait"
    "docs/api/directives.md";
BALANCER_OF_ONE "nginx-balancer-of-one" Note
    "a balancing method over one server"
    "With one server there is nothing to balance: in cluster mode the kernel and PM2 choose the worker, for a connection and not for a request."
    "remove it"
    "docs/api/doctor.md";
BANS "nginx-passive-bans" Warning
    "servers with nginx's `max_fails` (1) and `fail_timeout` (10 s)"
    "One failure keeps a server out for 10 s, however well its new worker serves, and when all are out everybody gets 502: \
     5 100 of 22 542 requests failed in six `pm2 reload` of four workers in fork mode, 21 of 26 055 with max_fails=0 and every try. \
     With `handoff` only a crash can bring that about (a note)."
    "`max_fails=0` on each server"
    "docs/operations/deaths.md";
TRIES "nginx-tries" Warning
    "`proxy_next_upstream_tries` below the number of servers, without `handoff`"
    "PM2 replaces two workers at a time where there are more than two: two tries may meet both, and the third worker is never asked \
     (9 to 17 % failed while reloading, even with max_fails=0)."
    "`proxy_next_upstream_tries 0;`"
    "docs/operations/deaths.md";
NEXT_OFF "nginx-next-upstream" Warning
    "`proxy_next_upstream` is `off`, or does not name `error`"
    "What a dying worker fails is never given to another one, not even a GET; Handoff never breaks that word, either."
    "`proxy_next_upstream error timeout http_502 http_503 http_504;`"
    "docs/api/directives.md#who-is-tried-again";
NON_IDEMPOTENT "nginx-non-idempotent" Error
    "`proxy_next_upstream … non_idempotent`"
    "A POST that a dying worker may have executed is sent to the next one: 21 orders were run twice in six reloads. With `handoff` it is never needed."
    "the same without `non_idempotent`"
    "docs/api/directives.md#who-is-tried-again";
KEEPALIVE_LONG "nginx-keepalive-timeout" Warning
    "nginx keeps idle connections for longer than the app does, and nothing bounds their reuse"
    "A POST that meets the end of an idle connection gets 502, also without a deploy: 399 of 4 160 that were aimed at that moment; with `handoff` 0 (docs/decisions/reuse.md)."
    "`keepalive_timeout` below the app's, in the upstream"
    "docs/decisions/reuse.md";
REUSE "nginx-reuse" Warning
    "`handoff_reuse always`, or an `idle` that is not below the app's keep-alive timeout"
    "A POST may ride a connection that the app is closing: 455 of 4 560 failed that were aimed at that moment, 0 with the default."
    "`handoff_reuse idle=1s;`, the default"
    "docs/decisions/reuse.md";
KEEPALIVE_UNUSED "nginx-keepalive-unused" Note
    "`keepalive` in the upstream, and a location that closes each connection"
    "Without `proxy_http_version 1.1` and an empty `Connection` header nginx (before 1.29.7) opens a connection for each request there, and the pool stays empty."
    "`proxy_http_version 1.1;` and `proxy_set_header Connection \"\";` in the location"
    "nginx-conf/minimal.conf";
ZONE "nginx-zone" Warning
    "several servers without `zone`"
    "Each nginx process counts failures for itself: every one of them has to meet a dead worker before it knows."
    "`zone NAME 256k;`"
    "nginx-conf/production.conf";
LOCALHOST "nginx-localhost" Warning
    "a server by a name that is several addresses, on one of which nobody listens"
    "nginx takes it for several servers. What it sends to the one where nobody listens is refused, and is a failure if no try is left."
    "the address itself"
    "docs/operations/sidecar.md";
NOBODY "nginx-nobody-listens" Warning
    "a server on which nobody listens"
    "nginx tries it again and again; where no try is left that is 502. With `handoff run` it is `down` after 10 s (a note)."
    "remove it, or start the worker"
    "docs/operations/deaths.md#scale";
READ_TIMEOUT "nginx-read-timeout" Warning
    "`proxy_read_timeout` below the slowest request (`--slowest`)"
    "nginx answers 504 while the worker still works, and a GET is run again elsewhere."
    "`proxy_read_timeout` above it"
    "docs/api/doctor.md";
SHUTDOWN "nginx-shutdown-timeout" Warning
    "`worker_shutdown_timeout` is shorter than the slowest request or than requests may wait"
    "After each `nginx -s reload` the old processes cut what takes longer, and whoever waits there for a worker."
    "a longer one, or none"
    "docs/api/directives.md#who-waits";
OPEN_FILES "nginx-open-files" Warning
    "`worker_connections` above the open files that nginx's processes may have"
    "nginx runs out of files before it runs out of connections, and refuses visitors; each request that is passed on takes two."
    "`worker_rlimit_nofile` of twice `worker_connections`"
    "docs/api/doctor.md";

// Handoff in nginx
NOT_LOADED "handoff-not-loaded" Error
    "nginx does not load Handoff's module"
    "nginx learns that a worker goes by failing requests on it: 5 100 of 22 542 in six `pm2 reload` of four workers in fork mode, 7 of 8 725 in two in cluster mode; with Handoff 0 of 15 000."
    "`load_module`, `handoff;` in the upstream, a control server, `handoff run`"
    "nginx-conf/minimal.conf";
MISSING "handoff-missing" Warning
    "an upstream of an app's workers without `handoff`"
    "It is stock nginx: nobody tells it that a worker goes."
    "`handoff;` and `zone` in it"
    "docs/api/directives.md";
UNCOVERED "handoff-uncovered" Warning
    "requests reach a peer past its marks"
    "A drain does not keep everybody away: what comes in this way meets a worker that is being stopped. `handoff reload` refuses for it."
    "pass to the upstream with `handoff`"
    "docs/api/control.md#overview";
QUEUE "handoff-queue" Warning
    "`handoff_queue` is off, or shorter than PM2 may take to replace the only worker"
    "Whoever comes while nobody serves is answered 502 at once, or 503 before the new worker is there."
    "a `timeout` above `kill_timeout` and the start"
    "docs/api/directives.md#who-waits";
SLOW_START "handoff-slow-start" Note
    "`handoff_slow_start` where one address is all that nginx has"
    "nginx gives a new worker its share by the weight of its address. In cluster mode, or with one server, there is no other address that could have the rest."
    "fork mode, a port and a server for each worker; or without it"
    "docs/decisions/slow-start.md";
CONTROL "control-missing" Error
    "no location with `handoff_api write=on`"
    "Nobody can tell nginx anything: `handoff` in the upstream does nothing."
    "a server on a unix socket with `handoff_api write=on;`"
    "nginx-conf/control.conf";
CONTROL_TCP "control-tcp" Warning
    "`handoff_api` may be written to over TCP"
    "Whoever reaches that port can take workers out of service. Over TCP nobody says who they are."
    "a unix socket"
    "docs/api/control.md#who-may-call";
CONTROL_UNREACHED "control-unreached" Error
    "nginx cannot be told anything: its control socket does not answer"
    "Marks are neither set nor seen; nginx serves as stock."
    "start nginx, or give the right socket with `--control`"
    "docs/api/control.md";
CONTROL_DENIED "control-denied" Error
    "PM2's user may not write to nginx's control socket"
    "`handoff run` sees every stop, and nginx refuses to hear of it."
    "`handoff_api write=on user=NAME;`"
    "docs/operations/sidecar.md#as-which-user";
NOT_RELOADED "nginx-not-reloaded" Warning
    "the configuration names upstreams with `handoff` that the running nginx does not have"
    "What was written is not yet in force."
    "`nginx -s reload`"
    "docs/api/doctor.md";
MODULE_REPLACED "nginx-module-replaced" Warning
    "the module's file was replaced under a running nginx"
    "`nginx -s reload` does not load it: nginx keeps the old one mapped under that name."
    "restart nginx"
    "docs/decisions/one-module-build-per-nginx.md";
VERSIONS "version-differs" Warning
    "module, sidecar and this command are not of one release"
    "They speak the same words (`/v1`), but what one can do the other may not know."
    "install one release, restart nginx and the sidecar"
    "docs/api/control.md";
ZONE_FULL "handoff-zone-full" Warning
    "`handoff_zone` has no room for every peer"
    "Peers without room are served as by stock nginx."
    "a larger `handoff_zone`"
    "docs/api/directives.md";
LAPSED "leases-lapsed" Warning
    "marks ran out because nobody renewed them"
    "Meanwhile nginx used workers that were being replaced. A lease is 10 s and is renewed each second: the sidecar was dead, halted, or without a CPU for as long."
    "run it as a service that is restarted; a free CPU"
    "docs/operations/sidecar.md#when-it-stops";

// The sidecar
SIDECAR "sidecar-not-running" Error
    "no sidecar runs beside PM2"
    "Nobody tells nginx that a worker goes; only `handoff reload` loses nothing."
    "`handoff run`, as a service"
    "docs/operations/sidecar.md";
SIDECAR_HANGS "sidecar-hangs" Error
    "the sidecar has said nothing for five seconds"
    "Its marks run out; nginx is not told of a stop."
    "restart it"
    "docs/operations/sidecar.md#when-it-stops";
SIDECAR_USER "sidecar-user" Error
    "the sidecar runs neither as PM2's user nor as root"
    "PM2's sockets are not believed, or not open to it: it sees nothing."
    "run it as PM2's user"
    "docs/operations/sidecar.md#as-which-user";
STATE "state-not-kept" Warning
    "the directory of the sidecar's state cannot be written"
    "After a restart of nginx an operator's mark is forgotten, and a worker that was taken out of service serves again."
    "`--state-dir` that PM2's user may write"
    "docs/operations/sidecar.md#files";
PRELOAD_GONE "preload-gone" Error
    "`node_args` names a preload that is not there"
    "Node does not start: the next replacement of a worker ends with it."
    "`handoff preload > FILE`"
    "docs/api/preload.md";
PRELOAD_OLD "preload-old" Warning
    "the preload is of another release"
    "It may not know what this release asks of it."
    "`handoff preload > FILE`, then replace the workers"
    "docs/api/preload.md";
PRELOAD_SILENT "preload-silent" Warning
    "a worker was given the preload, and does not speak with the sidecar"
    "It goes without a word, as if it had none."
    "`handoff reload`; `HANDOFF_PRELOAD_SOCKET` in the app's env if the socket is elsewhere"
    "docs/api/preload.md#on-the-socket";

// PM2
PM2_SOCKET "pm2-socket" Error
    "PM2's socket cannot be used, or is not believed"
    "Nobody sees what PM2 does."
    "run `handoff` as PM2's user or as root"
    "docs/operations/sidecar.md#as-which-user";
DAEMON_TWICE "pm2-daemon-twice" Error
    "two PM2 daemons have the same home"
    "Only one has the sockets: the other's workers serve, and nobody can stop or replace them."
    "end the one without the sockets"
    "docs/api/doctor.md";
FORGOTTEN "pm2-worker-forgotten" Warning
    "PM2 has forgotten a worker in cluster mode"
    "It died while it was being replaced, and PM2 started it again: it serves on with the old code, and neither PM2 nor a reload can replace it."
    "end it by hand (`kill -INT`): the others serve"
    "docs/operations/chaos.md";
OTHER_HOME "pm2-other-home" Note
    "PM2 also runs with a home that was not looked at"
    "Its apps are not in this answer. The sidecar does not watch it, either."
    "`--pm2-home` for each, also for `handoff run`"
    "docs/operations/sidecar.md#configuration";
APP_TWICE "pm2-app-twice" Warning
    "two daemons have an app of the same name"
    "`pm2` and a deploy script change whichever `PM2_HOME` happens to name."
    "one of them, or another name"
    "docs/api/cli.md";
LOG_FORMAT "pm2-log-format" Warning
    "PM2's daemon has an empty `PM2_LOG_DATE_FORMAT`"
    "PM2 gives no notice of a stop, so that nginx cannot be told before the signal (L1 at most, without the preload)."
    "start PM2's daemon without it"
    "docs/api/cli.md#commands";
NO_PS "pm2-no-ps" Warning
    "`ps` is not installed"
    "PM2 signals at once, before nginx can be told, and processes a restart twice."
    "`apt-get install procps`"
    "docs/operations/sidecar.md#limits";
NOT_RUNNING "pm2-not-running" Error
    "a worker does not run, and PM2 does not start it again"
    "The others serve for it; another death, and nobody does."
    "see its log, mend it, `pm2 restart`"
    "docs/operations/deaths.md";
NO_READY "pm2-wait-ready" Warning
    "`wait_ready` is off, in fork mode with several workers"
    "PM2 stops the next worker as soon as the new process exists, before it serves (1 399 of 29 094 failed in ten reloads of four)."
    "`wait_ready: true`, and `process.send('ready')` when the app listens"
    "docs/api/cli.md#commands";
READY_UNSAID "pm2-ready-not-said" Warning
    "`wait_ready` is on, and a worker did not say `ready` in time"
    "PM2 waits `listen_timeout` for each worker, and then takes it for ready, whatever it is: the old one is stopped, and `pm2 reload` ends with 0."
    "`process.send('ready')` when the app listens, or the preload, which says it"
    "docs/api/preload.md";
KILL_TIMEOUT_SHORT "pm2-kill-timeout" Warning
    "`kill_timeout` is PM2's default (1.6 s), or below the slowest request (`--slowest`)"
    "A request that takes longer is cut by SIGKILL at each `pm2 reload`, `restart` and `stop`."
    "`kill_timeout` above the slowest request"
    "docs/operations/sidecar.md#limits";
KILLED "pm2-killed" Warning
    "workers that PM2 stopped ended with SIGKILL, or with an exit code other than 0"
    "Whatever they still had was cut. An app whose server waits for idle connections never ends by itself (24 of 24 workers did not): `server.close()` is not enough."
    "the preload, which lets connections go when nginx knows; or a longer `kill_timeout`"
    "docs/api/preload.md";
GIVES_UP "pm2-gives-up" Warning
    "`max_restarts` below PM2's 16"
    "It is no delay: PM2 gives a worker up for good after so many exits younger than `min_uptime` (five within two seconds were enough), however short the trouble was."
    "`max_restarts: 16`, and `exp_backoff_restart_delay: 100` for a delay"
    "docs/operations/deaths.md#after-a-crash";
TWO_AT_ONCE "pm2-two-at-once" Warning
    "more than two workers, and an upstream without `handoff`"
    "`pm2 reload` and `pm2 restart` replace two at a time (`PM2_CONCURRENT_ACTIONS`), not one: two of the addresses nginx has are gone at once."
    "`handoff;`, or `pm2 reload APP --parallel 1`"
    "docs/operations/deaths.md";
ONE_WORKER "pm2-one-worker" Warning
    "one worker only, in fork mode"
    "Nobody serves while it is replaced: 2 028 of 28 489 failed in ten `pm2 reload`. With `handoff` requests wait, 1.4 s at most (a note, unless there is a port to spare for `handoff reload`)."
    "two or more; or a second `server` for `handoff reload`"
    "docs/operations/reload.md#one-worker-only";
TREEKILL "pm2-treekill" Warning
    "`treekill` is off"
    "PM2 signals before nginx can be told (−11 to 8 ms, instead of 7 to 37 ms before)."
    "`treekill: true`"
    "docs/operations/sidecar.md#limits";
CRON "pm2-cron-restart" Warning
    "`cron_restart`"
    "It restarts every worker in the same second, and nobody serves meanwhile: stock nginx failed 1 582 requests in 7.8 s. With `handoff` they wait."
    "let cron run `handoff reload`"
    "docs/operations/deaths.md";
WATCH "pm2-watch" Warning
    "`watch`"
    "It restarts workers, two at a time, whenever a file changes: a deploy changes many."
    "`watch: false` where users are"
    "docs/operations/deaths.md";
SAME_PORT "pm2-same-port" Error
    "workers in fork mode with the same port"
    "One listens, the others end with EADDRINUSE until PM2 gives them up."
    "`PORT=… pm2 restart ID --update-env` for each; then `pm2 reload NAME`, never the file"
    "docs/operations/deaths.md#the-file-and-increment_var";
ENV_UNUSED "pm2-env-not-applied" Warning
    "the PORT of an `env_NAME` block is not the app's"
    "`env_NAME` counts only with `--env NAME`; `pm2 reload APP --update-env` does not read the file at all."
    "start and reload the file with `--env NAME`"
    "docs/operations/reload.md";
FILE_DIFFERS "pm2-file-differs" Warning
    "the ecosystem file says other than the app runs with"
    "What was written is not in force: `pm2 reload NAME` does not read the file."
    "`handoff reload FILE`"
    "docs/operations/reload.md";
ECOSYSTEM_REFUSED "ecosystem-refused" Error
    "PM2 cannot read the ecosystem file"
    "The next `pm2 start` or `reload` of it fails."
    "what PM2 says"
    "docs/api/doctor.md";
NOT_REACHED "pm2-not-reached" Warning
    "a worker serves nobody: no upstream has its address"
    "nginx does not pass anything to it; the others carry its load."
    "its address in the upstream"
    "docs/operations/sidecar.md#what-it-does";

NOT_MAPPED "pm2-not-mapped" Warning
    "it is not certain which peer a worker is"
    "What is not certain is not touched: nginx is told nothing of that worker, and its users meet its end."
    "run `handoff` as PM2's user and in its namespaces; a port for each worker; or a `[[worker]]` in the configuration"
    "docs/operations/sidecar.md#configuration";

// The running app
EVERYWHERE "app-listens-everywhere" Warning
    "the app listens on every address of this host"
    "Whoever reaches the port goes past nginx: past its limits, its TLS, its log, and past every mark."
    "`app.listen(port, '127.0.0.1')`"
    "docs/operations/sidecar.md";
HEALTH_FAILS "health-fails" Error
    "a worker is not well, by its own word"
    "It serves users now; `handoff reload --health` would stop here."
    "see its log"
    "docs/operations/reload.md";
HEALTH_ANY "health-any-path" Warning
    "the app answers 2xx to any path, so its health path says nothing"
    "A check of it passes whatever is broken, also with a path that is not there."
    "a route of its own that fails when what the app needs is away"
    "docs/operations/reload.md";
HEALTH_SAME "health-constant" Note
    "the health path gives the same few bytes each time"
    "Whether it looks at anything cannot be seen from outside. One that only says that the process runs says what PM2 knows already."
    "ask there what the app needs (its database, with a query), and answer 503 if it is away"
    "docs/operations/reload.md";
HEALTH_REDIRECT "health-redirects" Warning
    "the health path answers with a redirect"
    "3xx counts as well, and says nothing: a login page redirects whatever is broken."
    "a path that answers by itself"
    "docs/operations/reload.md";

// The store
STORE_UNREACHED "store-unreached" Error
    "no member of etcd answers"
    "App hosts and nginx hosts do not know of each other: `handoff reload` stops nothing, and `pm2 reload` is what it is without Handoff."
    "start etcd; open its port to this host; or its right addresses in `--store`"
    "docs/operations/many-hosts.md#when-something-is-away";
STORE_MEMBER "store-member-away" Warning
    "a member of etcd does not answer, and another does"
    "One more that fails may be the end of the quorum; and who begins with it loses up to 1.5 s."
    "start it, or take it out of `--store`"
    "docs/operations/many-hosts.md#etcd";
STORE_TLS "store-tls" Error
    "etcd and this host do not believe each other: http to an https port or the reverse, a certificate of another authority, for another address, over or not begun, or ours, which etcd wants"
    "As if etcd were not there."
    "https in `--store` and the authority's own certificate in `--store-ca`; `--store-cert` and `--store-key` if etcd asks for ours; the right time on both hosts"
    "docs/operations/many-hosts.md#tls-and-users";
STORE_FILE "store-file" Error
    "a certificate, a key or the password cannot be read"
    "As if etcd were not there."
    "the right path, and the right to read it for the user that runs `handoff`"
    "docs/operations/many-hosts.md#tls-and-users";
STORE_LOGIN "store-user" Error
    "etcd does not take the user or the password"
    "As if etcd were not there."
    "`etcdctl user add`, and `--store-user` and `--store-password-file` with the same"
    "docs/operations/many-hosts.md#tls-and-users";
STORE_RIGHTS "store-rights" Error
    "the user may not read or write all that its role needs"
    "It is in the store by half: a mark is not written, or an answer to it not read."
    "`etcdctl role grant-permission`"
    "docs/operations/many-hosts.md#tls-and-users";
STORE_OLD "store-old" Error
    "etcd is older than 3.4"
    "Not tried with Handoff."
    "etcd 3.4 or newer"
    "docs/operations/many-hosts.md";
STORE_QUORUM "store-no-quorum" Error
    "a member of etcd has no leader"
    "It lost the others: nothing can be written there, and nothing is handed over through it."
    "start the other members, or mend the network between them"
    "docs/operations/many-hosts.md#etcd";
STORE_ALARM "store-alarm" Error
    "etcd has raised an alarm and takes no writes (NOSPACE: its database is as large as it may be)"
    "No mark can be said any more; leases end, and with them all that was said."
    "compaction, `etcdctl defrag`, then `etcdctl alarm disarm`"
    "docs/operations/many-hosts.md#etcd";
STORE_QUOTA "store-nearly-full" Warning
    "what is in use of etcd's database is above four fifths of what it may be (`--quota-backend-bytes`; where etcd before 3.6 does not say it, its default of 2 GB)"
    "At the quota etcd takes no more writes, and nothing is handed over. It keeps every change until it is told not to."
    "`--auto-compaction-mode=periodic --auto-compaction-retention=5m`, or a larger `--quota-backend-bytes`"
    "docs/operations/many-hosts.md#etcd";
STORE_CLEAR "store-in-clear" Warning
    "etcd on another machine is spoken to by http"
    "Whoever is on the way can read the marks and write others: that takes every worker out of service."
    "https, with `--store-ca`"
    "docs/operations/many-hosts.md#tls-and-users";
STORE_OUT "store-not-in" Error
    "the sidecar that runs is not in the store, though etcd answers"
    "As if etcd were not there."
    "what it says"
    "docs/operations/logs.md";
STORE_LEASE "store-lease-lost" Warning
    "the sidecar's lease in the store ended before it was given up"
    "What it had said there ended with it: nginx used workers that were being replaced, or nobody waited for this nginx. A lease is 10 s and is renewed each 2.5: the sidecar was halted, without a CPU, or cut off from etcd for as long."
    "a free CPU, a faster disk for etcd, a network between them that holds"
    "docs/decisions/store.md";
STORE_NO_EDGE "store-no-edge" Error
    "no nginx host is in the store"
    "Nobody acknowledges a drain: `handoff reload` stops nothing, and what `pm2 reload` stops every nginx learns by failing requests."
    "`handoff run --role edge` on each nginx host, with the same `--store` and `--store-cluster`"
    "docs/operations/many-hosts.md#set-up";
STORE_BEHIND "store-edge-behind" Warning
    "an nginx host is in the store, and has not acknowledged for two seconds or more"
    "Every hand-over waits for it, until its lease is over."
    "see its sidecar's log: its nginx does not answer, or it has no CPU"
    "docs/operations/many-hosts.md#when-something-is-away";
STORE_NO_PEER "store-no-peer" Error
    "no nginx in the store has a peer at the addresses of an app host"
    "Marks of that host reach nothing."
    "its workers' addresses in the upstreams of every nginx, or its right `--store-address`"
    "docs/operations/many-hosts.md#set-up";
STORE_MISSING "store-upstream-missing" Warning
    "an nginx in the store lacks an upstream, or peers in it, that another one has of the same host"
    "What that nginx passes to these workers goes past their marks, or does not go there at all: the load is not where it seems to be."
    "the same upstreams with `handoff;` in every nginx"
    "docs/operations/many-hosts.md#set-up";

// The host
SELINUX "selinux-boolean" Error
    "SELinux forbids nginx to connect: `httpd_can_network_connect` is off"
    "Every request is 502, with `(13: Permission denied)` in nginx's error log."
    "`setsebool -P httpd_can_network_connect on`"
    "docs/api/doctor.md";
APPARMOR "apparmor-confined" Note
    "AppArmor confines nginx"
    "What its profile does not name is refused: the workers' addresses, and the directory of the control socket. What it names cannot be read from here."
    "if nginx logs `(13: Permission denied)`: allow `network inet stream` and the socket's directory in the profile"
    "docs/api/doctor.md";

// `--nginx PATH`
UPGRADE_MODULE "upgrade-module" Error
    "a module that is configured does not fit the nginx given with `--nginx`"
    "nginx loads a module only into the version and build that it was made for: with this one it will not start."
    "install the module for that nginx together with it"
    "docs/decisions/one-module-build-per-nginx.md";
UPGRADE_REFUSED "upgrade-refused" Error
    "the nginx given with `--nginx` does not take the present configuration"
    "It will not start with it."
    "what that nginx says"
    "docs/api/doctor.md";
}

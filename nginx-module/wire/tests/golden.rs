//! The wire as bytes: a change of these strings is a change of the contract.

use handoff_wire::*;
use serde_json::{from_str, to_string};

#[test]
fn a_mark_request_is_read_as_it_is_written() {
    let text = r#"{"owner":"pm2:812","lease":"10s","marks":[{"upstream":"myapp","peer":"127.0.0.1:3000","state":"draining","expect":"back","reason":"pm2 is stopping it"}]}"#;
    let request: MarkSet = from_str(text).unwrap();
    assert_eq!(request.lease, Some(Span::from_secs(10)));
    assert_eq!(request.marks[0].state, State::Draining);
    assert_eq!(to_string(&request).unwrap(), text);
}

#[test]
fn the_shortest_mark_request_is_enough() {
    let request: MarkSet =
        from_str(r#"{"owner":"operator","marks":[{"peer":"[::1]:3000","state":"up"}]}"#).unwrap();
    assert_eq!((request.lease, request.force), (None, false));
    assert_eq!((request.marks[0].upstream.as_deref(), request.marks[0].expect), (None, Expect::Gone));
}

#[test]
fn a_misspelt_request_is_refused_with_its_place() {
    for (text, says) in [
        (r#"{"owner":"operator","mark":[]}"#, "unknown field `mark`"),
        (r#"{"owner":"operator"}"#, "missing field `marks`"),
        (r#"{"owner":"me","marks":[]}"#, "unknown owner"),
        (r#"{"owner":"operator","lease":10,"marks":[]}"#, "expected a string"),
        (r#"{"owner":"operator","lease":"10","marks":[]}"#, "write a whole number with its unit"),
        (r#"{"owner":"operator","marks":[{"peer":"a","state":"drain"}]}"#, "unknown variant `drain`"),
    ] {
        let error = from_str::<MarkSet>(text).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("column"), "{text}: {error}");
    }
}

#[test]
fn a_renewal_may_be_fenced() {
    let text = r#"{"owner":"rollout:a1","marks":[{"upstream":"myapp","peer":"127.0.0.1:3000","epoch":7}]}"#;
    assert_eq!(to_string(&from_str::<Renew>(text).unwrap()).unwrap(), text);
}

#[test]
fn orphans_are_named_by_both_ends() {
    let text = r#"{"owner":"pm2:812","connections":[{"peer":"127.0.0.1:3000","port":40312}]}"#;
    assert_eq!(to_string(&from_str::<OrphanSet>(text).unwrap()).unwrap(), text);
}

#[test]
fn an_acknowledgement_says_what_is_still_in_flight() {
    let text = r#"{"instance":"00c0ffee","generation":12,"marks":[{"upstream":"myapp","peer":"127.0.0.1:3000","state":"draining","epoch":7,"in_flight":3}]}"#;
    assert_eq!(to_string(&from_str::<Ack>(text).unwrap()).unwrap(), text);
}

#[test]
fn a_refusal_has_a_status_a_code_and_a_sentence() {
    let body = ErrorBody { error: Code::Floor.says("nobody would be left") };
    let text = r#"{"error":{"status":409,"code":"Floor","text":"nobody would be left"}}"#;
    assert_eq!(to_string(&body).unwrap(), text);
    let newer: ErrorBody = from_str(r#"{"error":{"status":418,"code":"Teapot","text":"x"}}"#).unwrap();
    assert_eq!(newer.error.code, Code::Unknown);
}

#[test]
fn a_peer_view_uses_the_six_words() {
    let text = r#"{"address":"127.0.0.1:3000","state":"unavail","marks":[{"owner":"operator","state":"down","expect":"gone","reason":"disk","epoch":3,"age":"1500ms"}],"in_flight":0,"requests":10,"responses":{"1xx":1,"2xx":2,"3xx":3,"4xx":4,"5xx":5},"timing":{"header":{"sum":"1042ms","buckets":[1,2,3,4,5,6,7,8,9,10,11,12]},"response":"2100ms","sent":1042,"received":90210,"selected":1795372605502},"fails":1,"cut":1,"refused":2,"outage":{"unavail":1,"downtime":"10250ms","downstart":1795372595502},"retired_before":0,"configured":true,"weight":1,"backup":false}"#;
    assert_eq!(to_string(&from_str::<PeerView>(text).unwrap()).unwrap(), text);
}

#[test]
fn a_queue_says_who_waits_and_what_became_of_those_who_did() {
    let text = r#"{"name":"myapp","peers":[],"queue":{"held":3,"held_max":4096,"bytes":1200,"bytes_max":1073741824,"timeout":"30s","resumed":7,"released":1,"timed_out":2,"left":4,"overflowed":5}}"#;
    assert_eq!(to_string(&from_str::<UpstreamView>(text).unwrap()).unwrap(), text);
}

#[test]
fn a_pause_has_an_end_whoever_forgets_it() {
    let text = r#"{"owner":"operator","upstreams":["myapp"],"max":"10s","reason":"schema 42"}"#;
    assert_eq!(to_string(&from_str::<Pause>(text).unwrap()).unwrap(), text);
    let shortest: Pause = from_str(r#"{"owner":"operator","upstreams":["myapp"]}"#).unwrap();
    assert_eq!((shortest.max, shortest.force), (DEFAULT_PAUSE, false));
    let text = r#"{"instance":"00c0ffee","generation":12,"upstreams":[{"upstream":"myapp","left":"10s","in_flight":3}]}"#;
    assert_eq!(to_string(&from_str::<PauseAck>(text).unwrap()).unwrap(), text);
    let text = r#"{"name":"myapp","peers":[],"pause":{"owner":"operator","reason":"schema 42","left":"9800ms","age":"200ms"}}"#;
    assert_eq!(to_string(&from_str::<UpstreamView>(text).unwrap()).unwrap(), text);
    let text = r#"{"quiet":false,"in_flight":3,"left":"9800ms"}"#;
    assert_eq!(to_string(&from_str::<Quiet>(text).unwrap()).unwrap(), text);
}

#[test]
fn who_resumes_is_told_whether_the_pause_lasted_until_then() {
    let text = r#"{"owner":"operator","upstreams":["myapp"],"force":true}"#;
    assert_eq!(to_string(&from_str::<Resume>(text).unwrap()).unwrap(), text);
    let text = r#"{"instance":"00c0ffee","generation":13,"upstreams":[{"upstream":"myapp","was":"lapsed","held":0}]}"#;
    assert_eq!(to_string(&from_str::<ResumeAck>(text).unwrap()).unwrap(), text);
}

#[test]
fn an_event_is_about_a_peer_or_about_an_upstream() {
    let text = r#"{"seq":1,"at":2,"kind":"mark","upstream":"myapp","peer":"127.0.0.1:3000","owner":"operator","from":"up","to":"down","in_flight":3,"reason":"disk"}"#;
    assert_eq!(to_string(&from_str::<Event>(text).unwrap()).unwrap(), text);
    let text = r#"{"seq":1,"at":2,"kind":"pause","upstream":"myapp","owner":"operator","in_flight":3,"reason":"schema 42"}"#;
    assert_eq!(to_string(&from_str::<Event>(text).unwrap()).unwrap(), text);
}

#[test]
fn a_timeline_tells_of_each_peer_what_it_was_and_since_when() {
    let text = r#"{"instance":"00c0ffee","generation":9,"now":9000,"deploys":[{"upstream":"myapp","began":1000,"ended":3500,"owners":["rollout:a1","pm2:/home/shop/.pm2"],"peers":[{"peer":"127.0.0.1:3000","reason":"a new release","in_flight":3,"lapsed":0,"steps":[{"at":1000,"state":"draining"},{"at":1500,"state":"down"},{"at":3500,"state":"up"}]}]}]}"#;
    let timeline: Timeline = from_str(text).unwrap();
    assert_eq!(to_string(&timeline).unwrap(), text);
    let spans: Vec<_> = timeline.deploys[0].peers[0].spans(timeline.now).collect();
    assert_eq!(spans, [(State::Draining, 1000, 1500), (State::Down, 1500, 3500), (State::Up, 3500, 9000)]);
    assert_eq!((timeline.deploys[0].end(9000), timeline.deploys[0].peers[0].state()), (3500, State::Up));
}

#[test]
fn a_retry_says_what_was_decided_and_why() {
    let text = r#"{"name":"myapp","peers":[],"retry":{"active":1,"allowed":3,"granted":{"next":1,"unsent":2,"replaced":3,"retry_after":4,"held":5,"orphan":6},"refused":{"off":1,"sent":2,"unbuffered":3,"timeout":4,"tries":5,"same":6,"broke":7,"later":8,"budget":9}}}"#;
    assert_eq!(to_string(&from_str::<UpstreamView>(text).unwrap()).unwrap(), text);
    let older = r#"{"active":0,"allowed":3,"granted":{"next":1},"refused":{}}"#;
    assert_eq!(from_str::<RetryView>(older).unwrap().granted.next, 1);
}

#[test]
fn a_new_worker_has_a_part_of_its_share() {
    let text = r#"{"name":"myapp","peers":[],"slow_start":"30s"}"#;
    assert_eq!(to_string(&from_str::<UpstreamView>(text).unwrap()).unwrap(), text);
    let text = r#"{"share":40,"left":"18s"}"#;
    assert_eq!(to_string(&from_str::<SlowStartView>(text).unwrap()).unwrap(), text);
}

#[test]
fn answers_are_counted_in_the_words_of_the_nginx_plus_api() {
    let text = r#"{"1xx":1,"2xx":2,"3xx":3,"4xx":4,"5xx":5}"#;
    let responses: Responses = from_str(text).unwrap();
    assert_eq!((responses.total(), responses.errors()), (15, 5));
    assert_eq!(to_string(&responses).unwrap(), text);
}

#[test]
fn the_overview_names_the_ways_around_the_marks() {
    let text = r#"{"api":1,"version":"0.1.0","nginx":"1.22.1","instance":"00c0ffee","started":1795372600000,"generation":2,"events":{"mark":1,"ready":2,"lapse":3,"pause":4,"resume":5,"add":6,"remove":7},"zone":{"size":4194304,"peers":4,"peers_max":1268,"peers_uncovered":0,"processes_max":128},"processes":[{"pid":812,"in_flight":3}],"uncovered":[{"peer":"127.0.0.1:3000","by":"upstream \"other\" in /etc/nginx/nginx.conf:12","more":1}]}"#;
    assert_eq!(to_string(&from_str::<Overview>(text).unwrap()).unwrap(), text);
}

/// nginx keeps its module until it is restarted, however new the client is.
#[test]
fn what_an_older_module_says_is_read() {
    let peer = r#"{"address":"127.0.0.1:3000","state":"up","marks":[],"in_flight":0,"requests":10,"fails":1,"refused":2,"retired_before":0,"configured":true,"weight":1,"backup":false}"#;
    let peer: PeerView = from_str(peer).unwrap();
    assert_eq!((peer.responses, peer.cut), (Responses::default(), 0));
    assert_eq!((peer.timing, peer.outage), (TimingView::default(), OutageView::default()));
    let overview = r#"{"api":1,"version":"0.1.0","nginx":"1.22.1","instance":"00c0ffee","generation":2,"zone":{"size":4194304,"peers":4,"peers_max":1430,"peers_uncovered":0,"processes_max":128},"processes":[]}"#;
    let overview: Overview = from_str(overview).unwrap();
    assert_eq!((overview.started, overview.uncovered), (0, vec![]));
    let upstream: UpstreamView = from_str(r#"{"name":"myapp","peers":[]}"#).unwrap();
    assert_eq!((upstream.queue, upstream.retry), (None, None));
}

#[test]
fn a_peer_is_added_with_the_terms_of_a_server() {
    let text = r#"{"owner":"operator","peer":"10.0.0.7:3000","weight":2,"max_fails":0,"fail_timeout":"30s","max_conns":64,"reason":"host 7"}"#;
    assert_eq!(to_string(&from_str::<PeerAdd>(text).unwrap()).unwrap(), text);
    let short: PeerAdd = from_str(r#"{"owner":"operator","peer":"10.0.0.7:3000"}"#).unwrap();
    assert_eq!(short, PeerAdd::new(Owner::operator(), "10.0.0.7:3000"));
    assert_eq!(
        (short.weight, short.max_fails, short.fail_timeout, short.max_conns),
        (1, 1, Span::from_secs(10), 0)
    );
    let backup = r#"{"owner":"operator","peer":"10.0.0.7:3000","backup":true}"#;
    assert!(from_str::<PeerAdd>(backup).unwrap_err().to_string().contains("unknown field `backup`"));
    let remove = r#"{"owner":"operator","reason":"host 7","force":true}"#;
    assert_eq!(to_string(&from_str::<PeerRemove>(remove).unwrap()).unwrap(), remove);
}

#[test]
fn an_answer_about_a_peer_says_whether_anything_changed() {
    let text = r#"{"instance":"00c0ffee","generation":12,"upstream":"myapp","peer":"10.0.0.7:3000","changed":true,"state":"up","in_flight":0}"#;
    assert_eq!(to_string(&from_str::<PeerAck>(text).unwrap()).unwrap(), text);
}

mod store {
    use handoff_wire::{Owner, store::*};
    use serde_json::{from_str, to_string};

    fn again<T: serde::Serialize + serde::de::DeserializeOwned>(text: &str) -> Option<String> {
        to_string(&from_str::<T>(text).ok()?).ok()
    }

    #[test]
    fn what_stands_in_the_store_is_read_as_it_is_written() {
        let text = r#"{"version":"0.1.0","addresses":["10.0.0.5","fd00::5"],"holder":{"boot":"b1","pid":812,"start":77}}"#;
        assert_eq!(again::<HostValue>(text).as_deref(), Some(text));
        let text = r#"{"state":"draining","said":3,"marks":[{"owner":"pm2:/home/shop/.pm2","state":"draining","expect":"back","reason":"shop:0: PM2 stops it"},{"owner":"operator","state":"draining","expect":"gone","force":true}]}"#;
        assert_eq!(again::<WorkerValue>(text).as_deref(), Some(text));
        let text =
            r#"{"version":"0.1.0","nginx":"1.28.3","holder":{"boot":"b1","pid":9,"start":5},"loaded":41}"#;
        assert_eq!(again::<EdgeValue>(text).as_deref(), Some(text));
        let text = r#"{"revision":42,"instance":"00c0ffee","upstreams":[{"name":"shop","peers":[{"address":"10.0.0.5:3000","state":"up","weight":1},{"address":"10.0.0.5:3001","state":"draining","marks":[{"owner":"pm2:app1//home/shop/.pm2","state":"draining","epoch":7}],"in_flight":2,"requests":9,"responses":{"1xx":0,"2xx":8,"3xx":0,"4xx":0,"5xx":1},"fails":1,"cut":1,"weight":1,"backup":true}],"elsewhere":{"serves":true}}],"refused":[{"upstream":"shop","address":"10.0.0.5:3000","owner":"rollout:app1/a1","refusal":{"status":409,"code":"Floor","text":"nobody is left"}}],"uncovered":[{"peer":"10.0.0.5:3000","by":"upstream \"other\"","more":0}]}"#;
        assert_eq!(again::<AckValue>(text).as_deref(), Some(text));
        let text = r#"{"version":"0.1.0","grace":"3600s","peers":[{"upstream":"shop","address":"10.0.0.5:3000"},{"upstream":"shop","address":"10.0.0.5:3001","weight":2,"max_fails":3,"fail_timeout":"30s","max_conns":100}]}"#;
        assert_eq!(again::<MembersValue>(text).as_deref(), Some(text));
        let text = r#"{"members":[{"upstream":"shop","address":"10.0.0.5:3000","stays":[{"edge":"edge1","text":"nginx.conf names it"}]}]}"#;
        assert_eq!(again::<Left>(text).as_deref(), Some(text));
        let text = r#"{"host":"app1","edges":[{"name":"edge1","current":true}]}"#;
        assert_eq!(again::<StoreView>(text).as_deref(), Some(text));
    }

    #[test]
    fn every_key_names_what_it_is_made_of() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let keys = Keys::new(&name("prod"));
        let (host, edge) = (name("app1"), name("edge-1.example"));
        let (upstream, address) = ("shop / 2".to_owned(), "[fd00::5]:3000".to_owned());
        for (key, is, text) in [
            (keys.host(&host), Key::Host(host.clone()), "/handoff/v1/prod/hosts/app1"),
            (keys.members(&host), Key::Members(host.clone()), "/handoff/v1/prod/members/app1"),
            (
                keys.worker(&host, &upstream, &address),
                Key::Worker { host: host.clone(), upstream, address },
                "/handoff/v1/prod/workers/app1/shop%20%2F%202/[fd00::5]:3000",
            ),
            (keys.edge(&edge), Key::Edge(edge.clone()), "/handoff/v1/prod/edges/edge-1.example"),
            (keys.ack(&host, &edge), Key::Ack { host, edge }, "/handoff/v1/prod/acks/app1/edge-1.example"),
        ] {
            assert_eq!((key.as_str(), keys.parse(&key)), (text, Some(is)));
        }
        assert_eq!(keys.parse("/handoff/v1/other/hosts/app1"), None);
        let (first, end) = keys.said();
        let is_said = |key: &str| (first.as_str()..end.as_str()).contains(&key);
        assert!(is_said("/handoff/v1/prod/hosts/app1") && is_said("/handoff/v1/prod/workers/z/z/z"));
        assert!(is_said("/handoff/v1/prod/members/app1"));
        assert!(!is_said("/handoff/v1/prod/edges/z") && !is_said("/handoff/v1/prod/acks/z/z"));
    }

    #[test]
    fn a_name_is_plain() {
        for wrong in ["", "a/b", "a b", "ü", &"x".repeat(41)] {
            assert!(wrong.parse::<Name>().unwrap_err().to_string().contains("is not a name"), "{wrong}");
        }
    }

    #[test]
    fn two_hosts_are_never_the_same_owner() {
        let at = |host: &str, owner: &str| {
            let owner: Owner = owner.parse().unwrap();
            at_edge(&host.parse().unwrap(), &owner).unwrap().to_string()
        };
        assert_eq!(at("app1", "pm2:/home/shop/.pm2"), "pm2:app1//home/shop/.pm2");
        assert_eq!(at("app1", "operator"), "rollout:app1/operator");
        let long = format!("pm2:{}", "x".repeat(50));
        let (one, other) = (at("app1.example.com", &long), at("app2.example.com", &long));
        assert!(one.len() <= 63 && one != other && one.starts_with("pm2:app1.example.com/"), "{one}");
        assert_ne!(one, at("app1.example.com", &format!("{long}y")));
    }
}

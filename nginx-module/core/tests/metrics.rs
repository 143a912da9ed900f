//! What `/metrics` says of a view, to the byte.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test says so by failing")]

use handoff_core::metrics::{self, Kind};
use handoff_wire::{Overview, Upstreams};
use std::collections::{BTreeMap, BTreeSet};

fn overview() -> Overview {
    serde_json::from_str(
        r#"{"api":1,"version":"0.1.0","nginx":"1.22.1","instance":"00c0ffee","started":1795372605502,"generation":2,
            "events":{"mark":1,"ready":2,"lapse":3,"pause":4,"resume":5},
            "zone":{"size":4194304,"peers":1,"peers_max":1257,"peers_uncovered":0,"processes_max":128},
            "processes":[{"pid":812,"in_flight":3}],"uncovered":[]}"#,
    )
    .unwrap()
}

/// An upstream whose name needs escaping, without a queue, and one that is paused.
fn upstreams() -> Upstreams {
    serde_json::from_str(
        r#"{"instance":"00c0ffee","generation":2,"upstreams":[
            {"name":"a\"b\\c\nd","peers":[]},
            {"name":"app","peers":[{"address":"127.0.0.1:3000","state":"draining","marks":[
                {"owner":"pm2:/home/shop/.pm2","state":"draining","expect":"back","reason":"x","epoch":3,"age":"1s"},
                {"owner":"pm2:/home/other/.pm2","state":"down","expect":"back","reason":"x","epoch":4,"age":"1s"}],
               "in_flight":3,"requests":10,"responses":{"1xx":1,"2xx":2,"3xx":3,"4xx":4,"5xx":5},
               "timing":{"header":{"sum":"1042ms","buckets":[1,0,2,0,0,0,0,0,0,0,0,1]},"response":"2100ms","sent":9,"received":10},
               "fails":1,"cut":6,
               "refused":2,"retired_before":0,"configured":true,"weight":1,"backup":false}],
             "queue":{"held":3,"held_max":4096,"bytes":1200,"bytes_max":1073741824,"timeout":"30s","resumed":7,
               "released":1,"timed_out":2,"left":4,"overflowed":5},
             "pause":{"owner":"operator","reason":"x","left":"9800ms","age":"200ms"},
             "retry":{"active":1,"allowed":3,"granted":{"next":1},"refused":{"sent":2}}}]}"#,
    )
    .unwrap()
}

fn text() -> String {
    String::from_utf8(metrics::render(&overview(), &upstreams()).unwrap()).unwrap()
}

/// The samples of a name, without it.
fn samples(name: &str) -> Vec<String> {
    let of =
        |line: &str| Some(line.strip_prefix(name)?.to_owned()).filter(|rest| rest.starts_with(['{', ' ']));
    text().lines().filter_map(of).collect()
}

#[test]
fn a_family_has_its_help_its_type_and_then_its_samples() {
    let text = text();
    let begin = "\
# HELP handoff_build_info The versions of the module and of nginx; always 1.
# TYPE handoff_build_info gauge
handoff_build_info{version=\"0.1.0\",nginx=\"1.22.1\"} 1
# HELP handoff_instance_info ";
    assert!(text.starts_with(begin), "{text}");
    assert!(
        text.ends_with("handoff_peer_refused_total{upstream=\"app\",peer=\"127.0.0.1:3000\"} 2\n"),
        "{text}"
    );
}

#[test]
fn names_of_an_operator_cannot_break_a_line() {
    assert_eq!(samples("handoff_upstream_paused"), [r#"{upstream="a\"b\\c\nd"} 0"#, r#"{upstream="app"} 1"#]);
}

#[test]
fn a_peer_is_in_one_state_and_owners_are_counted_by_their_kind() {
    let of = |label: &str, value: &str, number| {
        format!("{{upstream=\"app\",peer=\"127.0.0.1:3000\",{label}=\"{value}\"}} {number}")
    };
    let states = ["up", "changing", "trial", "checking", "unhealthy", "draining", "down", "unavail"];
    let wanted = states.map(|state| of("state", state, u8::from(state == "draining")));
    assert_eq!(samples("handoff_peer_state"), wanted);
    let owners = ["operator", "plus", "health", "pm2", "worker", "rollout"];
    let wanted = owners.map(|owner| of("owner", owner, if owner == "pm2" { 2 } else { 0 }));
    assert_eq!(samples("handoff_peer_marks"), wanted);
    assert_eq!(samples("handoff_peer_responses_total")[4], of("class", "5xx", 5));
}

#[test]
fn of_the_whole_it_is_told_since_when_and_what_happened() {
    assert_eq!(samples("handoff_instance_start_time_seconds"), [" 1795372605.502"]);
    assert_eq!(samples("handoff_events_total")[2], r#"{kind="lapse"} 3"#);
}

#[test]
fn what_there_is_not_has_no_sample_and_time_is_in_seconds() {
    assert_eq!(samples("handoff_upstream_pause_left_seconds"), [r#"{upstream="app"} 9.800"#]);
    assert_eq!(samples("handoff_queue_timeout_seconds"), [r#"{upstream="app"} 30.000"#]);
    assert_eq!(samples("handoff_queue_ended_total").len(), 4);
    assert_eq!(samples("handoff_retries_granted_total").len(), 6);
    assert_eq!(samples("handoff_retries_refused_total")[1], r#"{upstream="app",reason="sent"} 2"#);
}

#[test]
fn a_histogram_is_cumulative_and_ends_with_all() {
    let peer = r#"upstream="app",peer="127.0.0.1:3000""#;
    let buckets = samples("handoff_peer_header_seconds_bucket");
    assert_eq!(buckets.len(), 12);
    for (at, le, count) in [(0, "0.005", 1), (1, "0.01", 1), (2, "0.025", 3), (10, "10", 3), (11, "+Inf", 4)]
    {
        assert_eq!(buckets[at], format!("{{{peer},le=\"{le}\"}} {count}"));
    }
    assert_eq!(samples("handoff_peer_header_seconds_sum"), [format!("{{{peer}}} 1.042")]);
    assert_eq!(samples("handoff_peer_header_seconds_count"), [format!("{{{peer}}} 4")]);
    assert_eq!(samples("handoff_peer_last_selected_seconds"), Vec::<String>::new(), "it never was");
}

#[test]
fn names_follow_the_conventions() {
    let families: Vec<(&str, Kind, &str)> = metrics::INSTANCE
        .iter()
        .map(|it| (it.name, it.kind, it.help))
        .chain(metrics::UPSTREAM.iter().map(|it| (it.name, it.kind, it.help)))
        .chain(metrics::PEER.iter().map(|it| (it.name, it.kind, it.help)))
        .collect();
    for (name, kind, help) in &families {
        assert!(name.starts_with("handoff_"), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert!(help.ends_with('.') && !help.contains(['\n', '\\']), "{name}: {help}");
    }
    let names: BTreeSet<_> = families.iter().map(|(name, ..)| name).collect();
    assert_eq!(names.len(), families.len(), "a name stands twice");
}

/// What Prometheus refuses: the same series twice, a family in two places.
#[test]
fn no_series_is_told_twice() {
    let mut seen = BTreeMap::new();
    for line in text().lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert_eq!(seen.insert(series.to_owned(), value.to_owned()), None, "{line}");
    }
    let kinds = text().lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert_eq!(kinds, metrics::INSTANCE.len() + metrics::UPSTREAM.len() + metrics::PEER.len());
}

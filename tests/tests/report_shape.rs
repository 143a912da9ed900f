//! The shape of a report is a contract: whoever reads target/scenarios/*.json relies on it.

use e2e::{
    report::{Report, Tally},
    scenario::Setup,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[test]
fn a_report_has_exactly_the_agreed_fields() {
    let nothing = json!({ "p50": null, "p99": null, "max": null });
    let result = |setup: &str, level: Value| {
        json!({
            "setup": setup, "level": level, "runs": 0, "deploys": 0,
            "requests": 0, "failed": 0, "failed_by": {}, "hung": 0,
            "executed_twice": 0, "failed_though_executed": 0,
            "retried": 0, "held": 0, "held_ms": nothing, "by_handoff_503": 0,
            "deploy_seconds": [],
            "ms": { "calm": nothing, "deploying": nothing, "control": nothing },
        })
    };
    let versions = BTreeMap::from([("nginx".to_owned(), "1.28.3".to_owned())]);
    let report = Report::new("S4", versions, &[Setup::Stock, Setup::Tuned, Setup::Handoff], &[]);
    let expected = json!({
        "scenario": "S4",
        "versions": { "nginx": "1.28.3" },
        "results": [result("stock", Value::Null), result("tuned", Value::Null), result("handoff", "L0".into())],
    });
    assert_eq!(serde_json::to_value(&report).unwrap(), expected);
}

#[test]
fn a_report_that_was_written_can_be_read() {
    let tally = Tally::of(Setup::Handoff, &[]);
    let text = serde_json::to_string(&tally).unwrap();
    assert_eq!(serde_json::from_str::<Tally>(&text).unwrap(), tally);
}

//! A pause of an upstream: who may begin, how it ends, and what is told of it.

mod common;

use common::*;
use handoff_core::control::MAX_MARKS;
use handoff_core::hold::Queue;
use handoff_core::{Admission, Applied, view};
use handoff_wire::State::*;
use handoff_wire::{Code, EventKind, Pause, PauseAck, Quiet, Refusal, Resume, Span, Was};

const QUEUE: Queue = Queue { requests: 8, bytes: 80, timeout: 30_000 };

fn stage() -> Stage {
    let mut stage = Stage::of(&[(APP, A), (APP, B), ("other", C)]);
    stage.world.queue = Some(QUEUE);
    for name in [APP, "other"] {
        assert!(stage.table().open_room(name, 1, |_| true).is_some());
    }
    stage
}

fn pause(owner: &str, max: Span) -> Pause {
    let (owner, reason) = (of(owner), "schema 42".to_owned());
    Pause { owner, upstreams: vec![APP.into()], max, reason, force: false }
}

fn seconds(seconds: u64) -> Span {
    Span::from_secs(seconds)
}

impl Stage {
    fn pauses(&self, owner: &str, max: Span) -> Result<Applied<PauseAck>, Refusal> {
        self.control().pause(&pause(owner, max))
    }

    fn resumes(&self, owner: &str, force: bool) -> Result<Was, Refusal> {
        let resume = Resume { owner: of(owner), upstreams: vec![APP.into()], force };
        let resumed = self.control().resume(&resume)?.ack.upstreams;
        Ok(resumed.first().map_or(Was::Running, |upstream| upstream.was))
    }

    fn quiet(&self) -> Quiet {
        view::quiet(&self.table(), &self.world, moment(self.now), APP)
    }

    fn kinds(&self) -> Vec<EventKind> {
        self.table().recall(0).events.iter().map(|event| event.kind).collect()
    }
}

#[test]
fn nobody_begins_while_it_lasts_and_who_has_begun_is_counted() {
    let stage = stage();
    assert_eq!(stage.claim(A), Admission::Admitted);
    let applied = stage.pauses("operator", seconds(10)).unwrap();
    let told = &applied.ack.upstreams[0];
    assert_eq!((told.upstream.as_str(), told.left, told.in_flight), (APP, seconds(10), 1));
    for peer in [A, B] {
        assert_eq!((stage.claim(peer), stage.claim_fit(peer)), (Admission::Paused, Admission::Paused));
    }
    // The marks may say what they like.
    stage.mark("pm2:1", A, Trial);
    stage.mark("pm2:1", B, Draining);
    assert_eq!((stage.claim_fit(A), stage.claim(B)), (Admission::Paused, Admission::Paused));
    assert_eq!(stage.quiet(), Quiet { quiet: false, in_flight: 1, left: Some(seconds(10)) });
    stage.release(A);
    assert_eq!(stage.quiet(), Quiet { quiet: true, in_flight: 0, left: Some(seconds(10)) });
    let other = stage.table().find("other", C).unwrap();
    let other = stage.table().turnstile(stage.row, other).unwrap();
    assert_eq!(other.claim(|| false, || false), Admission::Admitted);
}

#[test]
fn it_is_over_when_its_owner_says_so() {
    let stage = stage();
    stage.pauses("operator", seconds(10)).unwrap();
    assert_eq!(stage.resumes("operator", false), Ok(Was::Paused));
    assert_eq!(stage.claim(A), Admission::Admitted);
    assert_eq!(stage.resumes("operator", false), Ok(Was::Running), "once");
    assert_eq!(stage.kinds(), [EventKind::Pause, EventKind::Resume]);
    assert_eq!(stage.quiet().left, None);
}

#[test]
fn one_that_is_forgotten_ends_by_itself_to_the_millisecond_and_nobody_has_to_live_for_it() {
    let mut stage = stage();
    stage.pauses("operator", seconds(2)).unwrap();
    stage.now += 1_999;
    assert_eq!(stage.claim(A), Admission::Paused);
    stage.now += 1;
    assert_eq!(stage.claim(A), Admission::Admitted, "before anybody swept");
    let told = stage.sweep_after(100);
    assert_eq!(
        (told[0].kind, told[0].reason.as_str(), told[0].in_flight),
        (EventKind::Lapse, "its pause was over", 1)
    );
    assert_eq!(stage.sweep_after(100).len(), 0, "it is told once");
    assert_eq!(stage.resumes("operator", false), Ok(Was::Lapsed), "who comes too late is told");
    assert_eq!(stage.resumes("operator", false), Ok(Was::Running));
}

#[test]
fn to_say_it_again_does_not_make_it_longer() {
    let mut stage = stage();
    stage.pauses("operator", seconds(10)).unwrap();
    stage.now += 4_000;
    let again = stage.pauses("operator", seconds(10)).unwrap();
    assert_eq!((again.ack.upstreams[0].left, again.events.len()), (seconds(6), 0));
    let longer = stage.pauses("operator", seconds(30)).unwrap();
    assert_eq!((longer.ack.upstreams[0].left, longer.events.len()), (seconds(26), 1));
    let shorter = stage.pauses("operator", seconds(1)).unwrap();
    assert_eq!((shorter.ack.upstreams[0].left, stage.claim(A)), (seconds(0), Admission::Admitted));
}

#[test]
fn one_that_begins_after_another_has_a_time_of_its_own() {
    let mut stage = stage();
    stage.pauses("operator", seconds(2)).unwrap();
    stage.now += 60_000;
    let applied = stage.pauses("rollout:1", seconds(3)).unwrap();
    assert_eq!(applied.ack.upstreams[0].left, seconds(3));
    assert_eq!(stage.kinds(), [EventKind::Pause, EventKind::Lapse, EventKind::Pause]);
    let view = view::upstream(&stage.table(), &stage.world, moment(stage.now), APP).pause.unwrap();
    assert_eq!((view.owner.as_str(), view.reason.as_str(), view.age), ("rollout:1", "schema 42", seconds(0)));
}

#[test]
fn who_has_not_paused_it_can_neither_pause_it_nor_end_it() {
    let stage = stage();
    stage.pauses("operator", seconds(10)).unwrap();
    for refused in
        [stage.pauses("rollout:1", seconds(1)).unwrap_err(), stage.resumes("rollout:1", false).unwrap_err()]
    {
        assert_eq!(refused.code, Code::Paused);
        assert!(refused.text.contains("paused by operator (schema 42), for 10s at most"), "{refused}");
    }
    assert_eq!(stage.claim(A), Admission::Paused);
    assert_eq!(stage.resumes("rollout:1", true), Ok(Was::Paused));
}

#[test]
fn every_refusal_of_a_pause_says_what_is_wrong() {
    let mut stage = stage();
    let named = |names: &[&str]| Pause {
        upstreams: names.iter().map(|name| (*name).to_owned()).collect(),
        ..pause("operator", seconds(1))
    };
    let reason = |reason: &str| Pause { reason: reason.into(), ..named(&[APP]) };
    let max = |max| pause("operator", max);
    for (pause, code, says) in [
        (named(&[]), Code::BadRequest, "must name 1 to 256"),
        (named(&[APP; MAX_MARKS + 1]), Code::BadRequest, "must name 1 to 256"),
        (named(&["other", APP, "other"]), Code::BadRequest, "names \"other\" twice"),
        (named(&[APP, "nowhere"]), Code::UpstreamNotFound, "no upstream \"nowhere\""),
        (reason("two\nlines"), Code::BadRequest, "the reason for the pause must be one line"),
        (max(Span::from_millis(999)), Code::BadRequest, "\"max\" is 999ms, which is not between 1s and 600s"),
        (max(seconds(601)), Code::BadRequest, "\"max\" is 601s"),
        (max(seconds(31)), Code::TooLong, "would be answered 503 after 30s. Ask for at most that"),
    ] {
        let refused = stage.control().pause(&pause).unwrap_err();
        assert_eq!(refused.code, code, "{refused}");
        assert!(refused.text.contains(says), "{refused}");
    }
    assert_eq!((stage.kinds(), stage.is_paused()), (vec![], false), "all of it is done, or nothing");
    let forced = Pause { force: true, ..max(seconds(31)) };
    assert_eq!(stage.control().pause(&forced).unwrap().ack.upstreams[0].left, seconds(31));
    stage.world.queue = None;
    let refused = stage.pauses("operator", seconds(1)).unwrap_err();
    assert!(
        refused.code == Code::NoQueue && refused.text.contains("says \"handoff_queue off\""),
        "{refused}"
    );
}

#[test]
fn an_upstream_for_which_the_zone_has_no_room_is_not_paused() {
    let mut stage = Stage::new();
    stage.world.queue = Some(QUEUE);
    let refused = stage.pauses("operator", seconds(1)).unwrap_err();
    assert!(refused.code == Code::NoQueue && refused.text.contains("handoff_zone has no room"), "{refused}");
    assert_eq!(stage.resumes("operator", false), Ok(Was::Running));
}

#[test]
fn a_room_that_is_given_to_another_upstream_is_not_paused() {
    let mut stage = stage();
    stage.pauses("operator", seconds(10)).unwrap();
    stage.table().header.commit(2, moment(1));
    stage.world.alive.clear();
    let table = stage.table();
    ["other", "b", "c"].into_iter().for_each(|name| _ = table.open_room(name, 2, |_| false).unwrap());
    let room = table.open_room("d", 2, |_| false).unwrap();
    assert!(table.room_of(APP).is_none() && !table.room(room).unwrap().pause.holds(|| stage.now));
}

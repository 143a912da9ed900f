//! Every cell of the table by which a request is given to a peer again or not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by failing")]

use handoff_core::retry::*;
use handoff_wire::{GrantedView, RefusedView};
use std::cell::Cell;

/// A GET whose peer reset the connection, and nginx has another attempt.
const GET: Failure = Failure {
    cause: Cause::Connection,
    sent: Sent::Something,
    may_change: false,
    is_unbuffered: false,
    is_reason: true,
    may_repeat_changes: false,
    time_left: None,
    tries_left: 1,
    may_try: true,
    broke: 1,
    added: 0,
    retry_after: None,
};
const POST: Failure = Failure { may_change: true, ..GET };
/// The same, where nginx has no attempt left.
const LAST: Failure = Failure { tries_left: 0, ..GET };
const ANSWERED: Failure = Failure { cause: Cause::Status, ..LAST };

const ALONE: Around = Around { would_wait: false, is_alone: true, is_replaced: false, may_rest: true };
const REPLACED: Around = Around { is_replaced: true, ..ALONE };
const OTHERS: Around = Around { is_alone: false, ..ALONE };
const EXPECTED: Around = Around { would_wait: true, is_alone: false, ..ALONE };
const FULL: Around = Around { may_rest: false, ..ALONE };

fn granted(granted: Granted) -> Verdict {
    Verdict::Granted(granted)
}

fn refused(refused: Refused) -> Verdict {
    Verdict::Refused(refused)
}

fn after(seconds: u64) -> Option<RetryAfter> {
    Some(RetryAfter::Seconds(seconds))
}

#[test]
fn what_a_user_can_meet() {
    let unwritten = Failure { sent: Sent::NoByte, broke: 0, ..POST };
    let refused_connection = Failure { sent: Sent::Nothing, broke: 0, ..LAST };
    let news = Verdict::Rests(Rest::ForNews);
    for (what, failure, around, verdict) in [
        ("nginx goes on", GET, OTHERS, granted(Granted::Next)),
        ("an order that was sent", POST, OTHERS, refused(Refused::Sent)),
        (
            "an order that was sent, and another worker",
            Failure { tries_left: 0, ..POST },
            REPLACED,
            refused(Refused::Sent),
        ),
        (
            "an order that was sent, and nobody is up",
            Failure { tries_left: 0, ..POST },
            EXPECTED,
            refused(Refused::Sent),
        ),
        (
            "the user says non_idempotent",
            Failure { may_repeat_changes: true, ..POST },
            OTHERS,
            granted(Granted::Next),
        ),
        (
            "an order to a closed port",
            Failure { sent: Sent::Nothing, ..POST },
            OTHERS,
            granted(Granted::Next),
        ),
        ("an order of which no byte was written", unwritten, OTHERS, granted(Granted::Unsent)),
        (
            "the same, and nginx has no attempt",
            Failure { tries_left: 0, ..unwritten },
            REPLACED,
            granted(Granted::Replaced),
        ),
        (
            "its body is gone",
            Failure { is_unbuffered: true, ..unwritten },
            OTHERS,
            refused(Refused::Unbuffered),
        ),
        ("proxy_next_upstream off", Failure { is_reason: false, ..GET }, OTHERS, refused(Refused::Off)),
        ("off, and another worker", Failure { is_reason: false, ..LAST }, REPLACED, refused(Refused::Off)),
        ("off, and nobody is up", Failure { is_reason: false, ..LAST }, EXPECTED, refused(Refused::Off)),
        (
            "proxy_next_upstream_timeout",
            Failure { time_left: Some(0), ..LAST },
            REPLACED,
            refused(Refused::Timeout),
        ),
        ("proxy_next_upstream_tries", Failure { may_try: false, ..LAST }, REPLACED, refused(Refused::Tries)),
        ("the same, and nobody is up", Failure { may_try: false, ..LAST }, EXPECTED, refused(Refused::Tries)),
        (
            "the same, closed ports, and nobody is up",
            Failure { may_try: false, ..refused_connection },
            EXPECTED,
            granted(Granted::Held),
        ),
        (
            "the same, closed ports, nobody knows yet",
            Failure { may_try: false, ..refused_connection },
            OTHERS,
            news,
        ),
        ("nobody is up, and somebody comes", LAST, EXPECTED, granted(Granted::Held)),
        ("one address, another worker", LAST, REPLACED, granted(Granted::Replaced)),
        ("one address, nobody knows yet", LAST, ALONE, news),
        ("a closed port, nobody knows yet", refused_connection, ALONE, news),
        ("all of several failed, nobody knows yet", LAST, OTHERS, news),
        ("no room to wait", LAST, FULL, refused(Refused::Same)),
        ("no room to wait, several", LAST, Around { is_alone: false, ..FULL }, refused(Refused::Tries)),
        (
            "it answers nothing in time",
            Failure { cause: Cause::Answerless, ..LAST },
            ALONE,
            refused(Refused::Same),
        ),
        (
            "the same, and another worker",
            Failure { cause: Cause::Answerless, ..LAST },
            REPLACED,
            granted(Granted::Replaced),
        ),
        ("a query of death", Failure { broke: 2, ..LAST }, REPLACED, refused(Refused::Broke)),
        ("it was added once", Failure { added: 1, broke: 0, ..LAST }, REPLACED, refused(Refused::Tries)),
        ("503, one address", ANSWERED, ALONE, refused(Refused::Same)),
        ("503, another worker", ANSWERED, REPLACED, granted(Granted::Replaced)),
        ("503, nobody is up", ANSWERED, EXPECTED, granted(Granted::Held)),
        (
            "503 and come at once",
            Failure { retry_after: after(0), ..ANSWERED },
            ALONE,
            Verdict::Rests(Rest::ForTime(0)),
        ),
        (
            "503 and come soon",
            Failure { retry_after: after(2), ..ANSWERED },
            ALONE,
            Verdict::Rests(Rest::ForTime(2000)),
        ),
        (
            "soon, and another worker",
            Failure { retry_after: after(1), ..ANSWERED },
            REPLACED,
            Verdict::Rests(Rest::ForTime(1000)),
        ),
        (
            "soon, and nobody is up",
            Failure { retry_after: after(1), ..ANSWERED },
            EXPECTED,
            granted(Granted::Held),
        ),
        ("soon, and no room", Failure { retry_after: after(1), ..ANSWERED }, FULL, refused(Refused::Same)),
        (
            "503 and come later",
            Failure { retry_after: after(3), ..ANSWERED },
            REPLACED,
            refused(Refused::Later),
        ),
        (
            "later, and nobody is up",
            Failure { retry_after: after(3), ..ANSWERED },
            EXPECTED,
            refused(Refused::Later),
        ),
        (
            "a date",
            Failure { retry_after: Some(RetryAfter::Unknown), ..ANSWERED },
            ALONE,
            refused(Refused::Later),
        ),
        (
            "soon, and past the time that it has",
            Failure { retry_after: after(1), time_left: Some(1000), ..ANSWERED },
            ALONE,
            refused(Refused::Later),
        ),
        (
            "later, and nginx goes on",
            Failure { retry_after: after(99), tries_left: 1, ..ANSWERED },
            OTHERS,
            granted(Granted::Next),
        ),
        (
            "an order that was answered 503",
            Failure { may_change: true, retry_after: after(1), ..ANSWERED },
            REPLACED,
            refused(Refused::Sent),
        ),
    ] {
        assert_eq!(failure.verdict(true, || around, || true), verdict, "{what}");
    }
}

#[test]
fn off_adds_nothing_and_takes_nothing_of_what_waits() {
    let verdict = |failure: Failure, around| failure.verdict(false, || around, || unreachable!("no budget"));
    assert_eq!(verdict(GET, OTHERS), granted(Granted::Next));
    assert_eq!(verdict(Failure { sent: Sent::NoByte, ..POST }, OTHERS), refused(Refused::Sent));
    assert_eq!(verdict(LAST, REPLACED), refused(Refused::Tries));
    assert_eq!(verdict(LAST, ALONE), refused(Refused::Tries));
    assert_eq!(verdict(Failure { retry_after: after(1), ..ANSWERED }, ALONE), refused(Refused::Tries));
    assert_eq!(verdict(LAST, EXPECTED), granted(Granted::Held), "that is handoff_queue");
}

#[test]
fn a_budget_that_is_spent_ends_what_we_add_and_nothing_else() {
    let verdict = |failure: Failure, around| failure.verdict(true, || around, || false);
    assert_eq!(verdict(Failure { sent: Sent::NoByte, ..POST }, OTHERS), refused(Refused::Budget));
    assert_eq!(verdict(LAST, REPLACED), refused(Refused::Budget));
    assert_eq!(verdict(Failure { retry_after: after(1), ..ANSWERED }, ALONE), refused(Refused::Budget));
    assert_eq!(verdict(GET, OTHERS), granted(Granted::Next));
    assert_eq!(verdict(LAST, EXPECTED), granted(Granted::Held));
}

/// `ngx_http_upstream_next()`, as it stands in nginx.
fn nginx_goes_on(failure: &Failure) -> bool {
    let request_sent = failure.sent != Sent::Nothing;
    let mask = failure.is_reason && (!(request_sent && failure.may_change) || failure.may_repeat_changes);
    !(failure.tries_left == 0
        || !mask
        || (request_sent && failure.is_unbuffered)
        || failure.time_left == Some(0))
}

type Row = (Failure, Around);

/// Each row with each of the values.
fn each<T: Copy>(rows: Vec<Row>, values: &[T], set: impl Fn(&mut Row, T)) -> Vec<Row> {
    let with = |mut row: Row, value| {
        set(&mut row, value);
        row
    };
    rows.into_iter()
        .flat_map(|row| values.iter().map(move |&value| (row, value)))
        .map(|(row, value)| with(row, value))
        .collect()
}

fn rows() -> Vec<Row> {
    const BOTH: [bool; 2] = [false, true];
    let rows = vec![(GET, ALONE)];
    let rows =
        each(rows, &[Cause::Connection, Cause::Answerless, Cause::Status], |row, cause| row.0.cause = cause);
    let rows = each(rows, &[Sent::Nothing, Sent::NoByte, Sent::Something], |row, sent| row.0.sent = sent);
    let rows = each(rows, &BOTH, |row, is_so| row.0.may_change = is_so);
    let rows = each(rows, &BOTH, |row, is_so| row.0.is_unbuffered = is_so);
    let rows = each(rows, &BOTH, |row, is_so| row.0.is_reason = is_so);
    let rows = each(rows, &BOTH, |row, is_so| row.0.may_repeat_changes = is_so);
    let rows = each(rows, &[None, Some(0), Some(1500)], |row, left| row.0.time_left = left);
    let rows = each(rows, &[0, 1], |row, tries| row.0.tries_left = tries);
    let rows = each(rows, &BOTH, |row, is_so| row.0.may_try = is_so);
    let rows = each(rows, &[0, 1, 2], |row, broke| row.0.broke = broke);
    let rows = each(rows, &[0, 1], |row, added| row.0.added = added);
    let afters = [None, after(0), after(1), after(3), Some(RetryAfter::Unknown)];
    let rows = each(rows, &afters, |row, after| row.0.retry_after = after);
    let rows = each(rows, &BOTH, |row, is_so| row.1.would_wait = is_so);
    let rows = each(rows, &BOTH, |row, is_so| row.1.is_alone = is_so);
    let rows = each(rows, &BOTH, |row, is_so| row.1.is_replaced = is_so);
    let rows = each(rows, &BOTH, |row, is_so| row.1.may_rest = is_so);
    // Only an answer says when to come again.
    rows.into_iter().filter(|(f, _)| f.cause == Cause::Status || f.retry_after.is_none()).collect()
}

/// Method × sent × cause × mask × tries × peers × budget: what holds in each cell.
#[test]
fn every_cell_keeps_the_promises() {
    let mut count = 0;
    for (failure, around) in rows() {
        for (has_budget, has_place) in [(false, false), (true, false), (true, true)] {
            let taken = Cell::new(0);
            let takes = || {
                taken.set(taken.get() + 1);
                has_place
            };
            let verdict = failure.verdict(has_budget, || around, takes);
            check(&failure, around, verdict, has_budget, has_place, taken.get()).unwrap_or_else(|why| {
                panic!("{why}: {failure:?} {around:?} {has_budget} {has_place}: {verdict:?}")
            });
            count += 1;
        }
    }
    assert_eq!(count, 7 * 3 * 2_usize.pow(5) * 3 * 2 * 3 * 2 * 16 * 3, "a cell was left out");
}

fn check(
    failure: &Failure,
    around: Around,
    verdict: Verdict,
    has_budget: bool,
    has_place: bool,
    taken: usize,
) -> Result<(), &'static str> {
    let is = |granted| verdict == Verdict::Granted(granted);
    let goes_again = !matches!(verdict, Verdict::Refused(_));
    let rests_for_time = matches!(verdict, Verdict::Rests(Rest::ForTime(_)));
    let is_ours = is(Granted::Unsent) || is(Granted::Replaced) || rests_for_time;
    let may_be_done = failure.may_change && !failure.may_repeat_changes && failure.sent == Sent::Something;
    let met_nobody = failure.cause == Cause::Connection && failure.sent == Sent::Nothing;
    for (holds, why) in [
        (
            is(Granted::Next) == nginx_goes_on(failure),
            "what nginx grants is granted, as such, and nothing else",
        ),
        (!(goes_again && may_be_done), "what may have been executed is never repeated"),
        (!goes_again || failure.is_reason, "the mask"),
        (!goes_again || failure.time_left != Some(0), "the time"),
        (!goes_again || !failure.is_unbuffered || failure.sent == Sent::Nothing, "the body"),
        (!goes_again || failure.tries_left > 0 || failure.may_try || met_nobody, "the tries"),
        (!is_ours || (has_budget && has_place && taken == 1), "what is added has a place in the budget"),
        (
            taken == 0 || is_ours || (!has_place && verdict == refused(Refused::Budget)),
            "a place is taken for nothing",
        ),
        (verdict != refused(Refused::Budget) || (taken == 1 && !has_place), "the budget has a place"),
        (has_budget || is(Granted::Next) || is(Granted::Held) || !goes_again, "off is nginx alone"),
        (!is(Granted::Unsent) || failure.sent == Sent::NoByte, "a byte was written"),
        (!is(Granted::Held) || around.would_wait, "nobody is expected"),
        (!is(Granted::Replaced) || (around.is_alone && around.is_replaced), "the same failed worker"),
        (!(is(Granted::Replaced) || rests_for_time) || failure.broke <= MAX_BROKE, "a query of death"),
        (!(is(Granted::Replaced) || rests_for_time) || failure.added < MOST, "more than one"),
        (!rests_for_time || failure.cause == Cause::Status, "only an answer says when to come again"),
        (
            verdict != Verdict::Rests(Rest::ForNews) || failure.cause == Cause::Connection,
            "only a broken connection has news",
        ),
        (!matches!(verdict, Verdict::Rests(_)) || around.may_rest, "no room to wait"),
        (!matches!(verdict, Verdict::Rests(Rest::ForTime(time)) if time > SOON), "longer than is soon"),
    ] {
        if !holds {
            return Err(why);
        }
    }
    Ok(())
}

#[test]
fn who_waits_for_news_goes_when_there_is_some_and_ends_when_there_is_none() {
    let look = |around, is_over, has_place| Rest::ForNews.look(is_over, || around, || has_place);
    assert_eq!(look(ALONE, false, true), Look::Stays);
    assert_eq!(look(ALONE, true, true), Look::Ends(refused(Refused::Same)));
    assert_eq!(look(OTHERS, true, true), Look::Ends(refused(Refused::Same)));
    for is_over in [false, true] {
        assert_eq!(look(EXPECTED, is_over, false), Look::Ends(granted(Granted::Held)));
        assert_eq!(look(REPLACED, is_over, true), Look::Ends(granted(Granted::Replaced)));
    }
    assert_eq!(look(REPLACED, false, false), Look::Stays, "the budget may have a place in a moment");
    assert_eq!(look(REPLACED, true, false), Look::Ends(refused(Refused::Budget)));
}

#[test]
fn who_was_told_when_to_come_comes_then_and_not_before() {
    let look = |is_over| Rest::ForTime(1000).look(is_over, || unreachable!(), || unreachable!());
    assert_eq!(look(false), Look::Stays);
    assert_eq!(look(true), Look::Ends(granted(Granted::RetryAfter)));
}

#[test]
fn every_verdict_has_a_counter_and_a_word_of_its_own() {
    let tally = Tally::default();
    let granted = Granted::ALL.map(Verdict::Granted).into_iter();
    let all: Vec<Verdict> = granted.chain(Refused::ALL.map(Verdict::Refused)).collect();
    for (times, &verdict) in (1..).zip(&all) {
        (0..times).for_each(|_| tally.count(verdict));
    }
    tally.count(Verdict::Rests(Rest::ForNews));
    let granted = GrantedView { next: 1, unsent: 2, replaced: 3, retry_after: 4, held: 5, orphan: 6 };
    let refused = RefusedView {
        off: 7,
        sent: 8,
        unbuffered: 9,
        timeout: 10,
        tries: 11,
        same: 12,
        broke: 13,
        later: 14,
        budget: 15,
    };
    assert_eq!((tally.granted(), tally.refused()), (granted, refused));
    let words: Vec<_> = all.iter().filter_map(|verdict| verdict.as_str()).collect();
    let fields = "next unsent replaced retry_after held orphan off sent unbuffered timeout tries same broke later budget";
    assert_eq!(words.join(" "), fields, "the words of the API");
}

#[test]
fn a_budget_is_a_share_of_what_is_active_and_never_less_than_its_least() {
    let budget = Budget::default();
    for (active, allowed) in [(0, 10), (54, 10), (55, 11), (1000, 200)] {
        assert_eq!(budget.allowed(active), allowed, "{active} active");
    }
}

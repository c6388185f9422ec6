#![allow(clippy::unwrap_used)]

use super::*;

const TASKS: [[f64; 3]; 2] = [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]];

fn member(name: &str, placed: bool, ready: bool) -> Member<'_> {
    Member { name, load_ms: 30.0, placed, ready }
}

fn all_ready<'a>(names: &[&'a str]) -> Vec<Member<'a>> {
    names.iter().map(|name| member(name, true, true)).collect()
}

fn choose(groups: &mut Groups, members: &[Member<'_>], task: usize) -> Chosen {
    groups.choose("tasks", members, &TASKS[task], 1e-3, 0.0).unwrap()
}

/// Each adapter is good at one task.
fn good(adapter: &str, task: usize) -> f64 {
    f64::from(u8::from(adapter == ["law", "sql"][task]))
}

#[test]
fn judgements_teach_which_adapter_is_good_at_which_task() {
    let (mut groups, members) = (Groups::default(), all_ready(&["law", "sql"]));
    let mut right = 0;
    for at in 0..400 {
        let task = at % 2;
        let chosen = choose(&mut groups, &members, task);
        let id = format!("chatcmpl-{at}");
        groups.named(chosen.ticket, &id);
        let judged = groups.judge(&id, good(&chosen.adapter, task), 0.0).unwrap();
        assert_eq!((&judged.adapter, &*judged.group), (&chosen.adapter, "tasks"));
        right += usize::from(at >= 200 && good(&chosen.adapter, task) > 0.0);
    }
    assert!(right >= 150, "{right} of 200");
    let expected = groups.expected("tasks", &TASKS[1]);
    assert!(expected[1].1 > expected[0].1 + 0.5, "{expected:?}");
}

#[test]
fn the_answer_comes_from_what_is_held_and_demand_goes_where_it_should() {
    let mut groups = Groups::default();
    let members = all_ready(&["law", "sql"]);
    for at in 0..300 {
        let chosen = choose(&mut groups, &members, at % 2);
        let id = at.to_string();
        groups.named(chosen.ticket, &id);
        groups.judge(&id, good(&chosen.adapter, at % 2), 0.0).unwrap();
    }
    // The good one has gone: the other answers, and the wish names the one that is missed.
    let members = [member("law", true, true), member("sql", false, false)];
    let chosen: Vec<Chosen> = (0..40).map(|_| choose(&mut groups, &members, 1)).collect();
    assert!(chosen.iter().all(|c| &*c.adapter == "law" && c.why != Why::Loading));
    let wished = chosen.iter().filter(|c| &*c.wish == "sql").count();
    assert!(wished >= 30, "{wished} of 40");
    // It is placed, and nothing else is at hand: requests wait for it.
    let members = [member("law", false, false), member("sql", true, false)];
    let chosen = choose(&mut groups, &members, 0);
    assert_eq!((&*chosen.adapter, chosen.why), ("sql", Why::Loading));
}

#[test]
fn an_adapter_that_is_nowhere_is_wished_for_so_that_it_is_tried() {
    let mut groups = Groups::default();
    let members = [member("law", true, true), member("new", false, false)];
    let wishes = (0..100).filter(|_| {
        let chosen = choose(&mut groups, &members, 0);
        groups.ended(chosen.ticket, 1.0);
        &*chosen.wish == "new"
    });
    assert!(wishes.count() > 0);
}

#[test]
fn objectives_teach_until_somebody_judges_and_are_forgotten_then() {
    let (mut groups, members) = (Groups::default(), all_ready(&["law", "sql"]));
    let chosen = choose(&mut groups, &members, 0);
    assert!(groups.ended(chosen.ticket, 1.0));
    let known = |groups: &Groups| groups.expected("tasks", &TASKS[0])[0].1;
    assert!(known(&groups) > 0.0);
    groups.named(chosen.ticket, "a");
    groups.judge("a", 0.0, 0.0).unwrap();
    assert!(known(&groups).abs() < 1e-12, "only the judgement counts, which is 0");
    let chosen = choose(&mut groups, &members, 0);
    assert!(!groups.ended(chosen.ticket, 1.0));
}

#[test]
fn each_answer_is_judged_once_by_either_name_and_in_time() {
    let (mut groups, members) = (Groups::default(), all_ready(&["law", "sql"]));
    let chosen = choose(&mut groups, &members, 0);
    for id in ["request-1", "chatcmpl-1", "chatcmpl-1"] {
        groups.named(chosen.ticket, id);
    }
    assert_eq!(groups.judge("other", 1.0, 0.0), Err(Unjudged::Unknown));
    assert!(matches!(groups.judge("request-1", f64::NAN, 0.0), Err(Unjudged::Rejected(_))));
    groups.judge("request-1", 1.0, 0.0).unwrap();
    assert_eq!(groups.judge("chatcmpl-1", 1.0, 0.0), Err(Unjudged::Again));
    let chosen = choose(&mut groups, &members, 0);
    groups.named(chosen.ticket, "late");
    assert_eq!(groups.judge("late", 1.0, PENDING_MS + 1.0), Err(Unjudged::Unknown));
    assert_eq!((groups.pending(), groups.by_id.len()), (0, 0));
}

#[test]
fn what_is_remembered_is_bounded() {
    let (mut groups, members) = (Groups::default(), all_ready(&["law", "sql"]));
    for at in 0..MOST_PENDING + 100 {
        let chosen = choose(&mut groups, &members, 0);
        groups.named(chosen.ticket, &at.to_string());
    }
    assert_eq!((groups.pending(), groups.by_id.len()), (MOST_PENDING, MOST_PENDING));
    assert_eq!(groups.judge("99", 1.0, 0.0), Err(Unjudged::Unknown));
    assert!(groups.judge("100", 1.0, 0.0).is_ok());
}

#[test]
fn members_come_and_go_and_keep_what_is_known_of_them() {
    let (mut groups, members) = (Groups::default(), all_ready(&["law", "sql"]));
    for at in 0..60 {
        let chosen = choose(&mut groups, &members, 0);
        groups.named(chosen.ticket, &at.to_string());
        groups.judge(&at.to_string(), good(&chosen.adapter, 0), 0.0).unwrap();
    }
    let before = groups.expected("tasks", &TASKS[0])[0].1;
    let waiting = choose(&mut groups, &members, 0);
    groups.named(waiting.ticket, "waits");
    choose(&mut groups, &all_ready(&["art", "law"]), 0);
    let after = groups.expected("tasks", &TASKS[0]);
    assert_eq!((after[1].0, after[1].1), ("law", before));
    assert_eq!(after[0], ("art", 0.0));
    // Its adapter may have left the group: then there is nothing to learn, and nothing breaks.
    assert!(groups.judge("waits", 1.0, 0.0).is_ok());
    groups.retain(|_| false);
    assert!(groups.expected("tasks", &TASKS[0]).is_empty());
    assert!(groups.choose("tasks", &[], &TASKS[0], 1e-3, 0.0).is_err());
    assert!(groups.choose("tasks", &members, &[f64::NAN; 3], 1e-3, 0.0).is_err());
}

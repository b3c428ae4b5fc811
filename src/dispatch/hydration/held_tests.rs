//! Tests of holds, claims and the queues in front of them.

use super::*;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn held() -> Rc<HeldKeys> {
    Rc::default()
}

/// Stands in the queues of some profiles, as a command that names them.
fn queue(keys: &Rc<HeldKeys>, names: &[&[u8]], shares: bool) -> Rc<Gate> {
    let gate = Rc::new(Gate::default());
    names.iter().for_each(|name| keys.wait(name, &gate, shares));
    gate
}

fn is_open(gate: &Gate) -> bool {
    gate.left.get() == 0
}

#[test]
fn whoever_names_a_held_profile_waits_for_its_end_and_nobody_else() {
    let keys = held();
    let hold = block_on(keys.hold(b"user:1"));
    assert!(!keys.lets_in(b"user:1", None, true) && keys.lets_in(b"user:2", None, false));
    let gates = [queue(&keys, &[b"user:1"], true), queue(&keys, &[b"user:1"], true)];
    assert!(hold.stands() && !keys.is_empty() && !gates.iter().any(|gate| is_open(gate)));
    drop(hold);
    assert!(gates.iter().all(|gate| is_open(gate)));
    drop(gates);
    assert!(keys.is_empty());
}

#[test]
fn a_flush_ends_holds_and_waits_for_a_repair() {
    let keys = held();
    let (looking, mending) = (block_on(keys.hold(b"user:1")), block_on(keys.hold(b"user:2")));
    mending.mend();
    let others = [queue(&keys, &[b"user:1"], false), queue(&keys, &[b"user:2"], false)];
    let gate = keys.clear_for_flush().expect("a repair to wait for");
    assert!(!looking.stands() && mending.stands());
    assert!(is_open(&others[0]), "whoever waits for a hold that was ended goes on");
    // A hold that has lost its key to another one must not end that.
    drop(others);
    let later = block_on(keys.hold(b"user:1"));
    drop(looking);
    assert!(later.stands());
    drop(mending);
    assert!(is_open(&gate));
    keys.let_go_all();
    drop(gate);
    assert!(!later.stands() && keys.clear_for_flush().is_none());
}

#[test]
fn a_claim_is_shared_until_somebody_wants_the_profile_alone() {
    let keys = held();
    let number = keys.claim(b"user:1", true);
    assert!(keys.lets_in(b"user:1", None, true) && !keys.lets_in(b"user:1", None, false));
    assert_eq!(keys.claim(b"user:1", true), number);
    let alone = queue(&keys, &[b"user:1"], false);
    assert!(!keys.lets_in(b"user:1", None, true), "somebody is in front");
    let late = [queue(&keys, &[b"user:1"], true), queue(&keys, &[b"user:1"], true)];
    // Neither a new epoch nor a flush ends it.
    keys.let_go_all();
    assert!(keys.clear_for_flush().is_some());
    keys.release(b"user:1", number);
    assert!(!is_open(&alone));
    keys.release(b"user:1", number);
    assert!(is_open(&alone) && !is_open(&late[0]));
    assert!(!keys.lets_in(b"user:1", None, true), "the turn is not for everybody");
    assert!(keys.lets_in(b"user:1", Some(&alone), false));
    let number = keys.claim(b"user:1", false);
    drop(alone);
    assert!(!is_open(&late[0]), "claimed");
    keys.release(b"user:1", number + 1);
    assert!(!is_open(&late[0]), "another one's claim");
    keys.release(b"user:1", number);
    assert!(late.iter().all(|gate| is_open(gate)), "all that share it go on together");
    drop(late);
    assert!(keys.is_empty());
}

#[test]
fn each_of_many_is_woken_once_and_in_order() {
    let keys = held();
    let mut number = keys.claim(b"user:1", false);
    let mut gates: VecDeque<_> = (0..200).map(|_| queue(&keys, &[b"user:1"], false)).collect();
    while let Some(next) = gates.pop_front() {
        keys.release(b"user:1", number);
        assert!(is_open(&next) && gates.iter().all(|gate| !is_open(gate)));
        number = keys.claim(b"user:1", false);
    }
    keys.release(b"user:1", number);
    assert!(keys.is_empty());
}

#[test]
fn a_turn_of_somebody_who_is_gone_goes_to_the_next() {
    let keys = held();
    let number = keys.claim(b"user:1", false);
    let [left, woken, killed, last] = [0; 4].map(|_| queue(&keys, &[b"user:1"], false));
    // It was late, or a comparison that took too long.
    drop(left);
    keys.release(b"user:1", number);
    assert!(is_open(&woken) && !is_open(&killed));
    // Its command was refused, or it is gone since it was woken.
    drop(woken);
    assert!(is_open(&killed) && !is_open(&last));
    drop(killed);
    assert!(is_open(&last));
    drop(last);
    assert!(keys.is_empty());
}

#[test]
fn whoever_names_several_profiles_keeps_its_place_for_all_of_them() {
    let keys = held();
    let (one, two) = (keys.claim(b"user:1", true), keys.claim(b"user:2", true));
    let both = queue(&keys, &[b"user:1", b"user:2", b"user:3", b"user:1"], false);
    // The same profiles in another order, and one alone.
    let crossed = queue(&keys, &[b"user:2", b"user:1"], false);
    let single = queue(&keys, &[b"user:1"], true);
    assert_eq!(both.left.get(), 2, "the third one is free, and its own");
    assert!(!keys.lets_in(b"user:3", None, true));
    keys.release(b"user:1", one);
    assert!(!is_open(&both) && !is_open(&crossed) && !is_open(&single), "it is the turn of both");
    keys.release(b"user:2", two);
    assert!(is_open(&both) && !is_open(&crossed));
    let names: [&[u8]; 3] = [b"user:1", b"user:2", b"user:3"];
    assert!(names.iter().all(|name| keys.lets_in(name, Some(&both), false)));
    // It goes without having claimed anything.
    drop(both);
    assert!(is_open(&crossed) && !is_open(&single));
    drop(crossed);
    assert!(is_open(&single));
    drop(single);
    assert!(keys.is_empty());
}

#[test]
fn whoever_spoils_a_claim_has_it_alone_when_all_others_are_out() {
    let keys = held();
    let number = keys.claim(b"user:1", true);
    assert!(keys.others(b"user:1", number).is_none());
    (0..2).for_each(|_| assert_eq!(keys.claim(b"user:1", true), number));
    assert!(!keys.is_spoiled(b"user:1", number));
    keys.spoil(b"user:1", number);
    assert!(keys.is_spoiled(b"user:1", number) && !keys.lets_in(b"user:1", None, true));
    let last = keys.others(b"user:1", number).expect("others");
    let waits = queue(&keys, &[b"user:1"], true);
    keys.release(b"user:1", number);
    assert!(!is_open(&last));
    keys.release(b"user:1", number);
    assert!(is_open(&last) && !is_open(&waits));
    keys.release(b"user:1", number);
    assert!(is_open(&waits));
    let next = keys.claim(b"user:1", true);
    assert!(!keys.is_spoiled(b"user:1", next), "another claim");
}

/// What a simulated command is at.
enum At {
    Waiting(Rc<Gate>),
    Claimed(Vec<u64>),
    Done,
}

/// Commands that name one to three of three profiles come, wait, go ahead, give up and are released
/// in any order. In the end everybody has had a turn, nobody had a profile together with somebody who
/// wanted it alone, and nothing is left.
#[test]
fn everybody_has_a_turn_whatever_others_do() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = move |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    const NAMES: [&[u8]; 3] = [b"a", b"b", b"c"];
    for _ in 0..3000 {
        let keys = held();
        let mut inside = [(0, 0); 3];
        let mut commands: Vec<(Vec<usize>, bool, At)> = Vec::new();
        let step =
            |keys: &Rc<HeldKeys>, names: &[usize], shares: bool, former: Option<Rc<Gate>>| {
                let free = |at: &usize| keys.lets_in(NAMES[*at], former.as_deref(), shares);
                if names.iter().all(free) {
                    return At::Claimed(
                        names.iter().map(|at| keys.claim(NAMES[*at], shares)).collect(),
                    );
                }
                let gate = Rc::new(Gate::default());
                let several = names.len() > 1;
                for at in names.iter().filter(|at| several || !free(at)) {
                    keys.wait(NAMES[*at], &gate, shares);
                }
                At::Waiting(gate)
            };
        let mut enter = |names: &[usize], shares: bool, by: i32| {
            for at in names {
                match shares {
                    true => inside[*at].0 += by,
                    false => inside[*at].1 += by,
                }
                let (sharing, alone) = inside[*at];
                assert!(alone == 0 || alone == 1 && sharing == 0, "{sharing} and {alone} alone");
            }
        };
        for round in 0..200 {
            if round < 40 {
                let mut names: Vec<usize> = (0..1 + draw(3)).map(|_| draw(3)).collect();
                names.sort_unstable();
                names.dedup();
                if draw(2) == 0 {
                    names.reverse();
                }
                let shares = draw(3) > 0;
                let at = step(&keys, &names, shares, None);
                if let At::Claimed(_) = at {
                    enter(&names, shares, 1);
                }
                commands.push((names, shares, at));
            }
            let chosen = draw(commands.len());
            let (names, shares, at) = &mut commands[chosen];
            *at = match std::mem::replace(at, At::Done) {
                // It gives up, and may have had its turn.
                At::Waiting(_) if draw(8) == 0 => At::Done,
                At::Waiting(gate) if is_open(&gate) => {
                    let at = step(&keys, names, *shares, Some(gate));
                    if let At::Claimed(_) = at {
                        enter(names, *shares, 1);
                    }
                    at
                }
                At::Claimed(claims) => {
                    enter(names, *shares, -1);
                    let claims = names.iter().zip(claims);
                    claims.for_each(|(at, claim)| keys.release(NAMES[*at], claim));
                    At::Done
                }
                at => at,
            };
        }
        // Whatever is left comes to its end without anybody giving up.
        while commands.iter().any(|(_, _, at)| !matches!(at, At::Done)) {
            let ready = commands.iter_mut().find(|(_, _, at)| match at {
                At::Waiting(gate) => is_open(gate),
                At::Claimed(_) => true,
                At::Done => false,
            });
            let (names, shares, at) = ready.expect("somebody was forgotten");
            *at = match std::mem::replace(at, At::Done) {
                At::Waiting(gate) => {
                    let at = step(&keys, names, *shares, Some(gate));
                    assert!(matches!(at, At::Claimed(_)), "a turn that lets nobody in");
                    enter(names, *shares, 1);
                    at
                }
                At::Claimed(claims) => {
                    enter(names, *shares, -1);
                    let claims = names.iter().zip(claims);
                    claims.for_each(|(at, claim)| keys.release(NAMES[*at], claim));
                    At::Done
                }
                At::Done => At::Done,
            };
        }
        assert!(keys.is_empty());
    }
}

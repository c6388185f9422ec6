use plimsoll_fleet::plan::PoolOutcome;

use super::support::*;

fn examples() -> World {
    let mut w = World::up();
    w.add(
        pool("chat", "llama-3.1-70b", 800.0, 50.0),
        demand(vec![class("a", 3.0, 1200.0, 250.0), class("b", 1.0, 3500.0, 400.0)]),
    );
    w.add(pool("code", "qwen3-32b", 1500.0, 80.0), demand(vec![class("a", 1.0, 2000.0, 300.0)]));
    let mut tiny = pool("tiny", "llama-3.1-8b", 1500.0, 80.0);
    tiny.scaling.min_replicas = 0;
    tiny.scaling.scale_to_zero_after_seconds = Some(600.0);
    w.add(tiny, demand(vec![class("a", 0.5, 500.0, 100.0)]));
    w
}

#[test]
fn three_pools_on_three_kinds_are_served() {
    let mut w = examples();
    let p = w.run();
    for pool in &p.pools {
        println!(
            "{} {} ${:.2} {:?} util {:.2} {:?} {:?} {:#?}",
            pool.pool,
            pool.fleet_text(),
            pool.usd_per_hour,
            pool.load_lines,
            pool.utilisation,
            pool.prediction,
            pool.envelope,
            pool.why
        );
        assert_eq!(pool.outcome, PoolOutcome::Served);
    }
    println!("{:?} {:?}", p.quality, p.binding);
    let again = w.run();
    for (a, b) in p.pools.iter().zip(&again.pools) {
        assert_eq!(a.replicas, b.replicas, "planning anew changes nothing");
    }
}

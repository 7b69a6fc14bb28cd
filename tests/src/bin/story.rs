//! `story SEED NODES [plant]`: tells the story, and prints the hash of its trace.

use std::time::Instant;

use memberlist_tests::{paused, story};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(Ok(seed)), Some(Ok(nodes))) = (args.first().map(|s| s.parse()), args.get(1).map(|s| s.parse()))
    else {
        eprintln!("story SEED NODES [plant]");
        std::process::exit(2);
    };
    let plant = args.get(2).is_some_and(|word| word == "plant");
    let start = Instant::now();
    let (world, outcome) = paused(story::tell(seed, nodes, plant));
    println!("{:016x}", world.trace.hash());
    eprintln!("{outcome:?} {:?} {:?} in {:?}", world.trace.counts(), world.network.stats(), start.elapsed());
}

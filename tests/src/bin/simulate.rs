//! `simulate campaign --seeds A..B [--nodes N] [--threads N] [--failures N]`: clusters under faults that are drawn from
//! seeds. `simulate run SEED [--nodes N]` says what happens in one, and `simulate shrink SEED [--nodes N]` what of that
//! a failure needs.

use std::{ops::Range, process::ExitCode, time::Instant};

use memberlist_tests::{
    experiments,
    simulate::{Campaign, Plan, run, shrink},
};

fn main() -> ExitCode {
    match command(std::env::args().skip(1).collect()) {
        Ok(good) => ExitCode::from(u8::from(!good)),
        Err(why) => {
            eprintln!(
                "{why}\n\nsimulate campaign --seeds A..B [--nodes N] [--threads N] [--failures N]\nsimulate run SEED [--nodes N]\nsimulate shrink SEED [--nodes N]"
            );
            ExitCode::from(2)
        }
    }
}

struct Options {
    seeds: Range<u64>,
    nodes: Option<usize>,
    threads: usize,
    failures: usize,
}

/// As many nodes as a seed has, if nobody says so.
fn nodes(seed: u64) -> usize {
    [5, 8, 12, 16][(seed % 4) as usize]
}

fn command(args: Vec<String>) -> Result<bool, String> {
    let mut words = args.iter();
    let what = words.next().ok_or("what is to be done?")?;
    if what == "experiment" {
        return experiment(words);
    }
    let mut options = Options {
        seeds: 0..100,
        nodes: None,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        failures: 10,
    };
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    if what != "campaign" {
        let seed = number(words.next().ok_or("which seed?")?)?;
        options.seeds = seed..seed + 1;
    }
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match &**word {
            "--seeds" => {
                let (from, to) = value.split_once("..").ok_or("seeds are A..B")?;
                options.seeds = number(from)?..number(to)?;
            }
            "--nodes" => options.nodes = Some(number(value)?.clamp(4, 1000) as usize),
            "--threads" => options.threads = number(value)?.max(1) as usize,
            "--failures" => options.failures = number(value)?.max(1) as usize,
            _ => return Err(format!("{word} is not known")),
        }
    }
    let of = |seed| options.nodes.unwrap_or_else(|| nodes(seed));
    let plan = |seed| Plan::of(seed, of(seed));
    let seed = options.seeds.start;
    match &**what {
        "campaign" => Ok(campaign(&options, of)),
        "run" => {
            let plan = plan(seed);
            plan.events.iter().for_each(|event| println!("{event}"));
            let report = run(&plan);
            println!("{report:#?}");
            Ok(report.broken.is_none())
        }
        "shrink" => {
            let plan = plan(seed);
            let Some((_, broken)) = run(&plan).broken else { return Err("it does not fail".into()) };
            let least = shrink(&plan, broken.rule, 500);
            least.events.iter().for_each(|event| println!("{event}"));
            println!("{:?}", run(&least).broken);
            Ok(false)
        }
        _ => Err(format!("{what} is not known")),
    }
}

/// `simulate experiment NAME [--nodes N] [--policy memberlist|ours] [--runs N] [--seed N] [--threads N] [--json]
/// [--set NAME=VALUE]`, the last for settings that are to differ from `ours`.
fn experiment<'a>(mut words: impl Iterator<Item = &'a String>) -> Result<bool, String> {
    let known = || {
        let all = experiments::ALL.iter().map(|(name, what, _)| format!("  {name:<20} {what}"));
        format!("which experiment?\n{}", all.collect::<Vec<_>>().join("\n"))
    };
    let name = words.next().ok_or_else(known)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options =
        experiments::Options { nodes: None, policy: None, repeats: 10, seed: 0, threads, set: Vec::new() };
    let mut json = false;
    while let Some(word) = words.next() {
        if word == "--json" {
            json = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|error| format!("{value}: {error}"));
        match &**word {
            "--nodes" => options.nodes = Some(number()?.clamp(4, 20_000) as usize),
            "--runs" => options.repeats = number()?.max(1),
            "--seed" => options.seed = number()?,
            "--threads" => options.threads = number()?.max(1) as usize,
            "--set" => {
                let (name, value) =
                    value.split_once('=').ok_or_else(|| format!("{value} is not NAME=VALUE"))?;
                let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
                options.set.push((name.to_owned(), value));
            }
            "--policy" => {
                let policy = experiments::Policy::ALL.into_iter().find(|policy| policy.name() == value);
                options.policy = Some(policy.ok_or_else(|| format!("{value} is no policy"))?);
            }
            _ => return Err(format!("{word} is not known")),
        }
    }
    let rows = experiments::run(name, &options).ok_or_else(known)?;
    print!("{}", if json { experiments::json(&rows) } else { experiments::markdown(&rows) });
    Ok(true)
}

fn campaign(options: &Options, of: impl Fn(u64) -> usize + Sync) -> bool {
    let begin = Instant::now();
    let all = Campaign::go(options.seeds.clone(), &of, options.threads, options.failures, |seed, report| {
        if let Some((at, broken)) = &report.broken {
            println!("seed {seed}: at {:.1} s {broken}", at.as_secs_f64());
            println!("  simulate run {seed} --nodes {}", of(seed));
        }
    });
    for (name, n) in &all.faults {
        println!("{name:>16} in {n} of {} runs", all.runs);
    }
    println!("events: {:?}", all.heard);
    if !all.missing().is_empty() {
        println!("never: {:?}", all.missing());
    }
    if let Some(most) = all.agreed.last() {
        let (half, p99) = (all.agreed[all.agreed.len() / 2], all.agreed[all.agreed.len() * 99 / 100]);
        println!("agreed after {half:?} in the median, {p99:?} in 99 of 100, {most:?} at most");
    }
    println!("{} runs, {} failed, {:.1} s", all.runs, all.failed.len(), begin.elapsed().as_secs_f64());
    all.failed.is_empty()
}

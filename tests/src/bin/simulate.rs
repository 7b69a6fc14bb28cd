//! `simulate campaign --seeds A..B [--nodes N|A..B] [--threads N] [--failures N]`: clusters under faults that are drawn
//! from seeds. `simulate run SEED [--nodes N] [--aloud] [--hash] [--trace]` says what happens in one, with each event that a node
//! tells, or the hash of it, and `simulate shrink SEED [--nodes N]` what of that a failure needs. `simulate experiment
//! NAME` measures, and `simulate plot` draws that.

use std::{ops::Range, process::ExitCode, time::Instant};

use memberlist_tests::{
    experiments,
    simulate::{Campaign, KINDS, Plan, Report, STATES, hash, hush, run, shrink, trace},
};

fn main() -> ExitCode {
    hush();
    match command(std::env::args().skip(1).collect()) {
        Ok(good) => ExitCode::from(u8::from(!good)),
        Err(why) => {
            eprintln!(
                "{why}\n\nsimulate campaign --seeds A..B [--nodes N|A..B] [--threads N] [--failures N]\nsimulate run SEED [--nodes N] [--aloud] [--hash] [--trace]\nsimulate shrink SEED [--nodes N]\nsimulate experiment NAME [--nodes N] [--policy memberlist|ours] [--runs N] [--seed N] [--threads N] [--json] [--set NAME=VALUE]\nsimulate plot grid|detection [COLUMN] < lines of JSON > SVG"
            );
            ExitCode::from(2)
        }
    }
}

struct Options {
    seeds: Range<u64>,
    nodes: Option<Range<u64>>,
    hash: bool,
    trace: bool,
    aloud: bool,
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
    if what == "plot" {
        return plot(words);
    }
    let mut options = Options {
        seeds: 0..100,
        nodes: None,
        hash: false,
        trace: false,
        aloud: false,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        failures: 10,
    };
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    if what != "campaign" {
        let seed = number(words.next().ok_or("which seed?")?)?;
        options.seeds = seed..seed + 1;
    }
    while let Some(word) = words.next() {
        if word == "--trace" {
            options.trace = true;
            continue;
        }
        if word == "--hash" {
            options.hash = true;
            continue;
        }
        if word == "--aloud" {
            options.aloud = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match &**word {
            "--seeds" => {
                let (from, to) = value.split_once("..").ok_or("seeds are A..B")?;
                options.seeds = number(from)?..number(to)?;
            }
            "--nodes" => {
                let (from, to) = value.split_once("..").unwrap_or((value, value));
                let (from, to) = (number(from)?.clamp(4, 1000), number(to)?.clamp(4, 1000));
                options.nodes = Some(from..to.max(from) + 1);
            }
            "--threads" => options.threads = number(value)?.max(1) as usize,
            "--failures" => options.failures = number(value)?.max(1) as usize,
            _ => return Err(format!("{word} is not known")),
        }
    }
    let of = |seed: u64| match &options.nodes {
        // Spread over the range, and the same for the same seed.
        Some(range) => {
            let spread = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            (range.start + spread % (range.end - range.start)) as usize
        }
        None => nodes(seed),
    };
    let plan = |seed| Plan::of(seed, of(seed));
    let seed = options.seeds.start;
    match &**what {
        "campaign" => Ok(campaign(&options, of)),
        "run" if options.trace => {
            trace(&plan(seed)).iter().for_each(|line| println!("{line}"));
            Ok(true)
        }
        "run" if options.hash => {
            let (report, hash) = hash(&plan(seed));
            println!("{hash:016x}");
            Ok(report.broken.is_none())
        }
        "run" => {
            let plan = Plan { aloud: options.aloud, ..plan(seed) };
            plan.events.iter().for_each(|event| println!("{event}"));
            let report = weighed(&plan);
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

/// `simulate plot grid [COLUMN]` or `simulate plot detection`: a chart of what an experiment has printed with `--json`.
fn plot<'a>(mut words: impl Iterator<Item = &'a String>) -> Result<bool, String> {
    let chart = words.next().ok_or("which chart?")?;
    let lines = std::io::read_to_string(std::io::stdin()).map_err(|error| error.to_string())?;
    println!("{}", experiments::plot(chart, words.next().map(String::as_str), &lines)?.trim_end());
    Ok(true)
}

/// How often news of each kind has met a member in each state.
fn met(all: &Campaign) {
    let line = |first: &str, cells: [String; 7]| {
        println!("{first:>14} {}", cells.map(|cell| format!("{cell:>11}")).concat());
    };
    line("news of", STATES.map(str::to_owned));
    for kind in KINDS {
        line(kind, STATES.map(|state| all.met.get(&(state, kind)).copied().unwrap_or_default().to_string()));
    }
}

/// A run, and what memory it takes.
fn weighed(plan: &Plan) -> Report {
    let mut report = Report::default();
    let info = allocation_counter::measure(|| report = run(plan));
    report.weigh(plan.nodes, info.bytes_max, info.bytes_current);
    report
}

fn campaign(options: &Options, of: impl Fn(u64) -> usize + Sync) -> bool {
    let begin = Instant::now();
    let all = Campaign::go(
        options.seeds.clone(),
        &of,
        weighed,
        options.threads,
        options.failures,
        |seed, report| {
            if let Some((at, broken)) = &report.broken {
                println!("seed {seed}: at {:.1} s {broken}", at.as_secs_f64());
                println!("  simulate run {seed} --nodes {}", of(seed));
            }
        },
    );
    for (name, n) in &all.faults {
        println!("{name:>16} in {n} of {} runs, {:.0} %", all.runs, 100.0 * *n as f64 / all.runs as f64);
    }
    let half = all.kinds.get(all.kinds.len() / 2).copied().unwrap_or_default();
    println!("{half} kinds of faults in a run, in the median");
    met(&all);
    println!("events: {:?}", all.heard);
    println!("runs in which something was: {:?}", all.effects);
    println!(
        "at most {} kB of memory a node, and {} kB left of a run",
        all.memory.0 >> 10,
        all.memory.1 >> 10
    );
    if !all.missing().is_empty() {
        println!("never: {:?}", all.missing());
    }
    if let Some(most) = all.agreed.last() {
        let (half, p99) = (all.agreed[all.agreed.len() / 2], all.agreed[all.agreed.len() * 99 / 100]);
        println!("agreed after {half:?} in the median, {p99:?} in 99 of 100, {most:?} at most");
    }
    println!("{} runs, {} failed, {:.1} s", all.runs, all.failed.len(), begin.elapsed().as_secs_f64());
    let uncovered = all.uncovered();
    uncovered.iter().for_each(|what| println!("not covered: {what}"));
    all.failed.is_empty() && uncovered.is_empty()
}

//! A pool of processes beside rayon's pool of threads, which shares memory and so bounds what is possible from above.
//!
//! Contenders take turns within a round; each figure is the median of the rounds, with the least and the greatest.

use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::Parser;
use procession::Pool;
use rayon::prelude::*;

/// Measures pools of workers.
#[derive(Parser)]
struct Arguments {
    /// Only workloads whose name contains this
    filter: Option<String>,
    /// Worker processes, or threads
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// How often each has its turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// Any of the library's errors, of which there are several types.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn square(n: u64) -> u64 {
    n * n
}

fn length(bytes: Vec<u8>) -> usize {
    bytes.len()
}

/// One way to do something so many times.
type Measured<'a> = (&'static str, u64, Box<dyn Fn() -> Result<Duration> + 'a>);

fn timed<R>(work: impl FnOnce() -> Result<R>) -> Result<Duration> {
    let start = Instant::now();
    black_box(work()?);
    Ok(start.elapsed())
}

fn main() -> Result<()> {
    const ITEMS: u64 = 1_000_000;
    const CALLS: u64 = 20_000;
    let arguments = Arguments::parse();
    let pool = Pool::new(arguments.workers)?;
    let threads = rayon::ThreadPoolBuilder::new().num_threads(arguments.workers).build()?;
    let payload = vec![1u8; 1 << 20];
    let workloads: Vec<Measured<'_>> = vec![
        (
            "map, a task for each item",
            ITEMS,
            Box::new(|| timed(|| Ok(pool.task(square).chunksize(1).map(0..ITEMS)?))),
        ),
        ("map, default chunks", ITEMS, Box::new(|| timed(|| Ok(pool.map(square, 0..ITEMS)?)))),
        (
            "map, rayon",
            ITEMS,
            Box::new(|| {
                timed(|| Ok(threads.install(|| (0..ITEMS).into_par_iter().map(square).collect::<Vec<_>>())))
            }),
        ),
        (
            "imap_unordered, buffer of 1000",
            ITEMS / 4,
            Box::new(|| {
                timed(|| {
                    let results = pool.task(square).buffersize(1000).imap_unordered(0..ITEMS / 4)?;
                    Ok(results.map(|result| result.map_err(Into::into)).sum::<Result<u64>>()?)
                })
            }),
        ),
        (
            "apply_async, then get",
            CALLS,
            Box::new(|| {
                timed(|| {
                    let results: Vec<_> =
                        (0..CALLS).map(|n| pool.apply_async(square, n)).collect::<std::result::Result<_, _>>()?;
                    Ok(results.iter().map(|result| result.get()).sum::<std::result::Result<u64, _>>()?)
                })
            }),
        ),
        (
            "apply, one after another",
            CALLS,
            Box::new(|| {
                timed(|| {
                    for n in 0..CALLS {
                        pool.apply(square, n)?;
                    }
                    Ok(())
                })
            }),
        ),
        (
            "apply, rayon",
            CALLS,
            Box::new(|| {
                timed(|| {
                    for n in 0..CALLS {
                        black_box(threads.install(|| square(n)));
                    }
                    Ok(())
                })
            }),
        ),
        (
            "apply, workers asleep",
            200,
            Box::new(|| {
                let mut spent = Duration::ZERO;
                for n in 0..200 {
                    std::thread::sleep(Duration::from_millis(1));
                    spent += timed(|| Ok(pool.apply(square, n)?))?;
                }
                Ok(spent)
            }),
        ),
        (
            "apply with 1 MiB",
            200,
            Box::new(|| {
                let arguments = vec![payload.clone(); 200];
                timed(|| {
                    for bytes in arguments {
                        pool.apply(length, bytes)?;
                    }
                    Ok(())
                })
            }),
        ),
        (
            "make a pool, one call, end it",
            10,
            Box::new(|| {
                timed(|| {
                    for n in 0..10 {
                        let pool = Pool::new(arguments.workers)?;
                        pool.apply(square, n)?;
                    }
                    Ok(())
                })
            }),
        ),
    ];
    let wanted = |name: &str| arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    let mut figures = vec![Vec::new(); workloads.len()];
    for _ in 0..arguments.rounds {
        for ((name, times, run), figures) in workloads.iter().zip(&mut figures) {
            if wanted(name) {
                figures.push(run()?.as_nanos() as f64 / *times as f64);
            }
        }
    }
    println!("{:32} {:>12} {:>12}   {:>9} to {:>9} ns", "", "ns each", "a second", "least", "greatest");
    for ((name, ..), mut figures) in workloads.iter().zip(figures) {
        figures.sort_by(f64::total_cmp);
        let Some(median) = figures.get(figures.len() / 2) else { continue };
        let (least, greatest) = (figures[0], figures[figures.len() - 1]);
        println!("{name:32} {median:12.0} {:12.0}   {least:9.0} to {greatest:9.0}", 1e9 / median);
    }
    pool.close()?;
    pool.join()?;
    Ok(())
}

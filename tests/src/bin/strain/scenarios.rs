//! The scenarios: loads and faults of the queue.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use carpool_queue::{Outcome, Producer};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    Args, Error,
    load::{self, Model, Tally, Workers},
    redis::Redis,
    report::{Measured, Row, float, mebibytes},
};

const WARM_UP: Duration = Duration::from_secs(1);
/// The memory of Redis: enough for every scenario but the one that fills it.
const MAX_MEMORY: &str = "2gb";
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

pub async fn steady(args: &Args) -> Result<(), Error> {
    let redis = Redis::start(&args.redis_server, MAX_MEMORY)?;
    let connection = redis.connection()?;
    let producers = load::producers(&connection, args.producers, load::limits(10_000)).await?;
    let workers = Workers::join(&connection, args.consumers, Model::default()).await?;
    workers.go();
    load::closed(&producers, args.clients, 256, WARM_UP).await?;
    redis.reset().await?;
    let (before, runs) = (redis.usage().await?, workers.runs());
    let begun = Instant::now();
    let time = Duration::from_secs(args.seconds);
    let tally = load::closed(&producers, args.clients, 256, time).await?;
    let took = begun.elapsed();
    let runs = workers.runs() - runs;
    args.print(&Row::new(
        "steady",
        Measured {
            tally: &tally,
            runs,
            took,
            before: &before,
            after: redis.usage().await?,
        },
    ))
}

pub async fn restart(args: &Args) -> Result<(), Error> {
    restart_with(args, "restart, 256 B", args.open, 256).await?;
    restart_with(args, "restart, 4 KiB", args.open, 4 * KIB).await?;
    restart_with(args, "restart, 1 MiB", args.open_large, MIB).await
}

async fn restart_with(args: &Args, name: &str, open: usize, size: usize) -> Result<(), Error> {
    let mut redis = Redis::start(&args.redis_server, MAX_MEMORY)?;
    let connection = redis.connection()?;
    let producers = load::producers(&connection, args.producers, load::limits(20_000)).await?;
    let workers = Workers::join(&connection, args.consumers, Model::default()).await?;
    let tally = Arc::new(Tally::default());
    let mut tasks = JoinSet::new();
    let mut send = |producer: &Producer, size| {
        let (producer, tally) = (producer.clone(), tally.clone());
        tasks.spawn(async move {
            // The tally counts the result.
            let _ = tally.send(&producer, size).await;
        });
    };
    for (_, producer) in (0..open).zip(producers.iter().cycle()) {
        send(producer, size);
    }
    while length(&producers[0]).await? < open as u64 {
        sleep(Duration::from_millis(50)).await;
    }
    // Redis flushes its log every second.
    sleep(Duration::from_millis(1500)).await;
    let peak = redis.usage().await?.peak;
    // Each proxy is in the middle of an enqueue, as any busy one is, and can't know whether Redis has the request.
    redis.pause().await?;
    for producer in &producers {
        send(producer, 256);
    }
    sleep(Duration::from_millis(200)).await;
    redis.kill();
    let loading = redis.cpu_to_load().await?;
    workers.go();
    redis.run()?;
    let back = Instant::now();
    load::finish(tasks).await?;
    let took = back.elapsed();
    let before = crate::redis::Usage {
        cpu: loading,
        peak,
        ..Default::default()
    };
    let mut row = Row::new(
        name,
        Measured {
            tally: &tally,
            runs: workers.runs(),
            took,
            before: &before,
            after: redis.usage().await?,
        },
    );
    if let Some((first, last)) = tally.span() {
        row.note = format!(
            "first answer {:.2} s after Redis was back, last one {:.2} s; loading took {loading:.2} s of CPU, not counted",
            first.saturating_duration_since(back).as_secs_f64(),
            last.saturating_duration_since(back).as_secs_f64(),
        );
    }
    args.print(&row)
}

async fn length(producer: &Producer) -> Result<u64, Error> {
    let backlog = producer.backlog().await?;
    Ok(backlog.revisions.values().map(|held| held.length).sum())
}

pub async fn overload(args: &Args) -> Result<(), Error> {
    let model = Model {
        batch: 4,
        ..Model::default()
    };
    let time = Duration::from_secs(args.seconds);
    let mut capacity = 0.0;
    for (name, factor) in [("", 0.0), ("overload, 1 x", 1.0), ("overload, 5 x", 5.0)] {
        let redis = Redis::start(&args.redis_server, MAX_MEMORY)?;
        let connection = redis.connection()?;
        let producers = load::producers(&connection, args.producers, load::limits(1000)).await?;
        let workers = Workers::join(&connection, 2, model).await?;
        workers.go();
        if name.is_empty() {
            let begun = Instant::now();
            let tally = load::closed(&producers, 1, 256, 2 * WARM_UP).await?;
            capacity = float(tally.answered() as u64) / begun.elapsed().as_secs_f64();
            continue;
        }
        let before = redis.usage().await?;
        let begun = Instant::now();
        let tally = load::arrivals(&producers, capacity * factor, time).await?;
        let took = begun.elapsed();
        let mut row = Row::new(
            name,
            Measured {
                tally: &tally,
                runs: workers.runs(),
                took,
                before: &before,
                after: redis.usage().await?,
            },
        );
        row.note = format!(
            "{:.0} arrivals a second; Redis used {:.0} % of a core",
            capacity * factor,
            row.redis_cpu_seconds / took.as_secs_f64() * 100.0,
        );
        args.print(&row)?;
    }
    Ok(())
}

pub async fn bodies(args: &Args) -> Result<(), Error> {
    let model = Model {
        time: Duration::ZERO,
        ..Model::default()
    };
    let sizes = [
        ("body, 256 B", 256),
        ("body, 4 KiB", 4 * KIB),
        ("body, 64 KiB", 64 * KIB),
        ("body, 1 MiB", MIB),
        ("body, 4 MiB", 4 * MIB),
    ];
    for (name, size) in sizes {
        let redis = Redis::start(&args.redis_server, MAX_MEMORY)?;
        let connection = redis.connection()?;
        let producers = load::producers(&connection, 1, load::limits(1000)).await?;
        let workers = Workers::join(&connection, 1, model).await?;
        workers.go();
        load::closed(&producers, 1, size, WARM_UP / 2).await?;
        redis.reset().await?;
        let (before, runs) = (redis.usage().await?, workers.runs());
        let begun = Instant::now();
        let time = Duration::from_secs(args.seconds.div_ceil(2));
        let tally = load::closed(&producers, 1, size, time).await?;
        let took = begun.elapsed();
        let runs = workers.runs() - runs;
        args.print(&Row::new(
            name,
            Measured {
                tally: &tally,
                runs,
                took,
                before: &before,
                after: redis.usage().await?,
            },
        ))?;
    }
    Ok(())
}

/// Requests whose proxy is gone are answered with 1 MiB each, while Redis may hold 64 MiB.
pub async fn dead_proxy(args: &Args) -> Result<(), Error> {
    const OPEN: u64 = 200;
    let redis = Redis::start(&args.redis_server, "64mb")?;
    let connection = redis.connection()?;
    let producers = load::producers(&connection, 1, load::limits(1000)).await?;
    let model = Model {
        answer: Some(MIB),
        ..Model::default()
    };
    let workers = Workers::join(&connection, 1, model).await?;

    // Dropping its runtime ends everything of a proxy at once, as the death of its process does.
    let (die, death) = mpsc::channel::<()>();
    let dying = connection.clone();
    let proxy = std::thread::spawn(move || -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let producer = runtime
            .block_on(async { Producer::start(dying, load::UID, "dead", load::limits(1000)) })?;
        for number in 0..OPEN {
            let producer = producer.clone();
            runtime.spawn(async move { producer.submit(load::request(number, 256)).await });
        }
        runtime.block_on(async {
            while death.try_recv() == Err(mpsc::TryRecvError::Empty) {
                sleep(Duration::from_millis(10)).await;
            }
        });
        Ok(())
    });
    while length(&producers[0]).await? < OPEN {
        sleep(Duration::from_millis(20)).await;
    }
    drop(die);
    proxy.join().map_err(|_| "the dying proxy panicked")??;

    let before = redis.usage().await?;
    let begun = Instant::now();
    workers.go();
    // All requests have run then; answers that find no room may keep the worker busy for longer.
    let all = async {
        while workers.runs() < OPEN {
            sleep(Duration::from_millis(20)).await;
        }
        // The last batch is still to be answered.
        sleep(Duration::from_secs(1)).await;
    };
    let all_ran = timeout(Duration::from_secs(15), all).await.is_ok();
    let usage = redis.usage().await?;
    let tally = Tally::default();
    let held = usage.memory;
    let submitted = timeout(
        Duration::from_secs(10),
        producers[0].submit(load::request(0, 256)),
    );
    let passes = match submitted.await {
        Ok(Ok(Outcome::Answer(_))) => "is answered".to_owned(),
        Ok(Ok(Outcome::Failure(failure))) => failure.message,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "waits for more than 10 s".to_owned(),
    };
    let mut row = Row::new(
        "dead proxy",
        Measured {
            tally: &tally,
            runs: 0,
            took: begun.elapsed(),
            before: &before,
            after: usage,
        },
    );
    row.note = format!(
        "{} of {OPEN} ran{}; Redis holds {:.0} MiB of 64; another proxy's request: {passes}",
        workers.runs(),
        if all_ran { "" } else { " within 15 s" },
        mebibytes(held),
    );
    args.print(&row)
}

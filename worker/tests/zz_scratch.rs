use common::{
    MLP, numbers,
    serving::{Redis, Worker, served, submit},
    texts,
};
use std::{
    path::Path,
    time::{Duration, Instant},
};
mod common;

const SENT: &str = "
uri: file://x
inputs:
- {name: input_ids, datatype: INT64, shape: [-1]}
- {name: attention_mask, datatype: INT64, shape: [-1]}
outputs: [{name: logits, datatype: FP32, shape: [2]}]
text: {tokenizer: tokenizer.json, maxLength: 128, labels: [NEGATIVE, POSITIVE]}
";

fn rss(id: u32) -> String {
    std::fs::read_to_string(format!("/proc/{id}/status"))
        .unwrap()
        .lines()
        .filter(|l| l.starts_with("VmRSS") || l.starts_with("RssAnon") || l.starts_with("Threads"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn hops(worker: &Worker) {
    let (_, m) = worker.get("/metrics");
    for name in [
        "carpool_forward_seconds",
        "carpool_queue_wait_seconds",
        "carpool_batch_size_rows",
        "carpool_padding_ratios",
    ] {
        let get = |s: &str| {
            m.lines()
                .find_map(|l| l.strip_prefix(&format!("{name}_{s} ")))
                .unwrap_or("0")
                .parse::<f64>()
                .unwrap()
        };
        println!(
            "{name} mean {:.7} n {}",
            get("sum") / get("count"),
            get("count")
        );
    }
    for hop in ["exchange", "assemble", "run", "encode"] {
        let get = |s: &str| {
            m.lines()
                .find_map(|l| l.strip_prefix(&format!("carpool_hop_seconds_{s}{{hop=\"{hop}\"}} ")))
                .unwrap_or("0")
                .parse::<f64>()
                .unwrap()
        };
        println!(
            "hop {hop} mean {:.1} us n {}",
            get("sum") / get("count") * 1e6,
            get("count")
        );
    }
}

#[tokio::test]
#[ignore]
async fn scratch() {
    let env = |k: &str, d: &str| std::env::var(k).unwrap_or(d.to_owned());
    let kind = env("KIND", "mlp");
    let clients: usize = env("CLIENTS", "1").parse().unwrap();
    let each: usize = env("EACH", "2000").parse().unwrap();
    let rounds: usize = env("ROUNDS", "0").parse().unwrap();
    let max = env("MAX", "32");
    let rest = format!("batching: {{maxBatchSize: {max}}}\nqueue: {{}}");
    let redis = Redis::start();
    let started = Instant::now();
    let s = if kind == "mlp" {
        served(MLP, &rest, |f| common::write_mlp(f, rounds))
    } else {
        served(SENT, &rest, |f: &Path| {
            for n in ["model.pt", "tokenizer.json"] {
                std::os::unix::fs::symlink(Path::new(&env("ART", "")).join(n), f.join(n)).unwrap();
            }
        })
    };
    let worker = s.worker(&redis, "w");
    println!("ready after {:?}; {}", started.elapsed(), rss(worker.id()));
    let producer = redis.producer();
    let texts_: Vec<String> = if kind == "mlp" {
        vec![]
    } else {
        let v: serde_json::Value = serde_json::from_slice(
            &std::fs::read(
                Path::new(&env("ART", ""))
                    .parent()
                    .unwrap()
                    .join("heldout.json"),
            )
            .unwrap(),
        )
        .unwrap();
        v.as_array()
            .unwrap()
            .iter()
            .map(|t| t["text"].as_str().unwrap().to_owned())
            .collect()
    };
    let texts_ = std::sync::Arc::new(texts_);
    let t0 = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|c| {
            let p = producer.clone();
            let kind = kind.clone();
            let texts_ = texts_.clone();
            tokio::spawn(async move {
                let mut l = Vec::new();
                for i in 0..each {
                    let r = if kind == "mlp" {
                        numbers(&[(c * i) as f32 / 1000.0; 4])
                    } else {
                        texts(&[&texts_[(c * each + i) % texts_.len()]], &[])
                    };
                    let t = Instant::now();
                    submit(&p, &r).await.unwrap();
                    l.push(t.elapsed());
                }
                l
            })
        })
        .collect();
    let mut all: Vec<Duration> = Vec::new();
    for t in tasks {
        all.extend(t.await.unwrap());
    }
    let took = t0.elapsed();
    all.sort();
    println!(
        "{clients} clients: {:.0}/s p50 {:?} p99 {:?}",
        all.len() as f64 / took.as_secs_f64(),
        all[all.len() / 2],
        all[all.len() * 99 / 100]
    );
    hops(&worker);
    println!("{}", rss(worker.id()));
}

//! A queue that moves, and a model that is made anew.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command},
};

use carpool_queue::Endpoint;
use carpool_sidecar::{Args, Settings};
use carpool_testkit::{RedisServer, free_port};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    client::{get, post, send, until},
    rig::{INFER, Rig, config, pair, pairs},
    worker,
};

fn at(secret: &str) -> Args {
    Args {
        redis_secret: Some(secret.to_owned()),
        ..Args::default()
    }
}

#[tokio::test]
async fn a_proxy_feeds_the_revision_whose_workers_read_its_redis() {
    let mut config = config(&pairs());
    config["places"] = json!({"old": "r1"});
    let old = Rig::start_with(config.clone(), at("old")).await;
    let waiting = old.post_later(INFER, pair());
    old.length("r1", 1).await;

    config["models"]["r2"] = pairs();
    config["serving"] = json!("r2");
    config["places"] = json!({"old": "r1", "new": "r2"});
    let new = Rig::start_with(config.clone(), at("new")).await;
    new.serves("r2").await;
    old.configure(&config);
    old.measures(r#"carpool_proxy_config_reloads_total{result="applied"} 1"#)
        .await;
    old.serves("r1").await;
    let last = old.post_later(INFER, pair());
    old.length("r1", 2).await;
    new.work("r2", worker::echo);
    assert_eq!(
        new.post(INFER, pair()).await.ok().unwrap()["model_version"],
        "r2"
    );
    old.echo();
    for request in [waiting, last] {
        assert_eq!(request.await.unwrap().ok().unwrap()["model_version"], "r1");
    }

    // A place that is gone is no reason to feed what nobody reads.
    config["places"] = json!({"new": "r2"});
    old.configure(&config);
    old.measures(r#"carpool_proxy_config_reloads_total{result="refused"} 1"#)
        .await;
    old.serves("r1").await;
}

#[test]
fn a_proxy_of_no_place_does_not_start_and_says_why() {
    let mut config = config(&pairs());
    config["places"] = json!({"mine": "r1"});
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.to_string()).unwrap();
    let settings = |secret: Option<&str>| {
        Settings::new(Args {
            config: Some(file.path().to_owned()),
            redis_url: Some("redis://redis".to_owned()),
            redis_secret: secret.map(str::to_owned),
            name: Some("p1".to_owned()),
            ..Args::default()
        })
    };
    assert!(settings(None).is_ok() && settings(Some("mine")).is_ok());
    let error = settings(Some("other")).err().unwrap().to_string();
    assert!(
        error.starts_with("no workers read the Redis of the Secret other; they read that of mine"),
        "{error}"
    );
}

/// A process with the folder that its pod mounts, which is killed when the test ends.
struct Sidecar {
    process: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Sidecar {
    fn start(config: &Value, url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        mount(folder.path(), config, url);
        let [address, admin] =
            [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let process = Command::new(env!("CARGO_BIN_EXE_carpool-sidecar"))
            .env_clear()
            .args(["--name", "p1", "--redis-secret", "m-redis"])
            .args(["--listen", &address.to_string()])
            .args(["--admin-listen", &admin.to_string()])
            .arg("--config")
            .arg(folder.path().join("now/config.yaml"))
            .arg("--redis-url-file")
            .arg(folder.path().join("now/url"))
            .spawn()
            .unwrap();
        Self {
            process,
            folder,
            address,
            admin,
        }
    }

    async fn backlog(&self) -> Option<Value> {
        TcpStream::connect(self.admin).await.ok()?;
        send(get(self.admin, "/backlog")).await.ok().ok()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Writes both files and switches to them at once, as kubelets do: by a symbolic link to a folder.
fn mount(folder: &Path, config: &Value, url: &str) {
    let next = tempfile::tempdir_in(folder).unwrap().keep();
    std::fs::write(next.join("config.yaml"), config.to_string()).unwrap();
    std::fs::write(next.join("url"), url).unwrap();
    let link = folder.join("next");
    std::os::unix::fs::symlink(next, &link).unwrap();
    std::fs::rename(link, folder.join("now")).unwrap();
}

#[tokio::test]
async fn a_sidecar_follows_its_model_that_is_made_anew() {
    let url = |password: &str, server: &RedisServer| {
        format!("redis://:{password}@127.0.0.1:{}", server.port)
    };
    let first = RedisServer::start_with(["--requirepass", "one"]);
    let mut config = config(&pairs());
    config["places"] = json!({"m-redis": "r1"});
    let sidecar = Sidecar::start(&config, &url("one", &first));
    let open = || tokio::spawn(send(post(sidecar.address, INFER, pair())));
    until(async || sidecar.backlog().await.map(drop)).await;
    let lost = open();
    until(async || (sidecar.backlog().await?["open"] == 1).then_some(())).await;

    // The model is deleted with its Redis, and another one of its name comes with another UID and another password.
    drop(first);
    let second = RedisServer::start_with(["--requirepass", "two"]);
    config["uid"] = json!("another");
    mount(sidecar.folder.path(), &config, &url("two", &second));
    let sentence = "the model was deleted and made anew while the request waited; try again";
    let answer = lost.await.unwrap();
    assert_eq!(answer.retry_after(), Some(1));
    assert_eq!(answer.ok(), Err((503, sentence.to_owned())));

    until(async || sidecar.backlog().await.map(drop)).await;
    let endpoint = Endpoint::from_url(&url("two", &second)).unwrap();
    let consumer = worker::connect_to(endpoint, "another", "r1").await;
    tokio::spawn(worker::serve(consumer, worker::echo));
    assert_eq!(open().await.unwrap().status, 200);
}

//! The configuration changes under way.

use serde_json::json;

use crate::{
    client::until,
    rig::{INFER, Rig, config, pair, pairs},
    worker,
};

impl Rig {
    /// Waits until new requests go to this revision.
    pub async fn serves(&self, revision: &str) {
        until(async || {
            let backlog = self.admin("/backlog").await.ok().ok()?;
            (backlog["serving"] == revision).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_stays_with_the_revision_it_began_with() {
    let mut config = config(&pairs());
    let rig = Rig::start(config.clone()).await;
    let old = rig.post_later(INFER, pair());
    rig.length("r1", 1).await;

    let mut model = pairs();
    model["inputs"][0]["shape"] = json!([3]);
    config["models"]["r2"] = model;
    config["serving"] = json!("r2");
    rig.configure(&config);
    rig.serves("r2").await;

    let shape = r#"input "x": expected shape [-1, 3], given [1, 2]"#;
    assert_eq!(
        rig.post(INFER, pair()).await.ok(),
        Err((422, shape.to_owned()))
    );
    let body =
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]});
    let new = rig.post_later(INFER, body);
    rig.length("r2", 1).await;
    rig.length("r1", 1).await;

    rig.work("r2", worker::echo);
    assert_eq!(new.await.unwrap().ok().unwrap()["model_version"], "r2");
    rig.echo();
    assert_eq!(old.await.unwrap().ok().unwrap()["model_version"], "r1");
}

#[tokio::test]
async fn limits_change_and_mistakes_do_not() {
    let mut config = config(&pairs());
    let rig = Rig::start(config.clone()).await;
    rig.echo();
    rig.configure("serving: [");
    rig.measures(r#"carpool_proxy_config_reloads_total{result="refused"} 1"#)
        .await;
    config["queue"]["maxRequestBytes"] = json!(16);
    let mut foreign = config.clone();
    foreign["name"] = json!("another");
    rig.configure(&foreign);
    rig.measures(r#"carpool_proxy_config_reloads_total{result="refused"} 2"#)
        .await;
    rig.post(INFER, pair()).await.ok().unwrap();
    rig.configure(&config);
    rig.measures(r#"carpool_proxy_config_reloads_total{result="applied"} 1"#)
        .await;
    assert_eq!(rig.post(INFER, pair()).await.status, 413);
}

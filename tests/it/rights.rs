//! What a node's role denies it, in every test: `TestCloud` holds each node to it.

use lighthpc::backend::Kind;
use lighthpc::domain::mission::Tally;

use crate::test_cloud::{TestCloud, mission_id};

#[tokio::test]
async fn a_node_counts_and_may_not_change_what_later_nodes_run() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a"]).await;
    let id = mission_id("M");
    let (node, scheduler) = (&cloud.node("a", "M").backend.ledger, &cloud.backend.ledger);
    scheduler.set_workload(&id, Some("honest"), Some(2), Some(3)).await.unwrap();
    let mission = scheduler.mission(&id).await.unwrap().unwrap();

    node.roll_up(&mission, Tally { ok: 1, seq: 1, ..Tally::default() }).await.unwrap();
    let refused = [
        node.set_exec(&id, Some("evil")).await.unwrap_err(),
        node.set_exec(&id, None).await.unwrap_err(),
        node.set_workload(&id, None, Some(10_000), None).await.unwrap_err(),
        node.take_on_demand(&id, 10).await.unwrap_err(),
        node.reserve_round(&mission, &[], 1).await.unwrap_err(),
        node.move_cursor(&node.cursor().await.unwrap()).await.unwrap_err(),
    ];

    assert!(refused.iter().all(|error| error.kind == Kind::AccessDenied), "{refused:?}");
    let after = scheduler.mission(&id).await.unwrap().unwrap();
    assert_eq!((after.exec.as_deref(), after.nodes, after.slots), (Some("honest"), Some(2), Some(3)));
    assert_eq!((after.rolled.ok, after.launch_round), (1, 0));
}

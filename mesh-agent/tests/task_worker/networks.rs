//! The networks of tasks on a real engine.

use futures::StreamExt;
use mesh_agent::task::docker::DockerEngine;
use mesh_agent::task::runtime::Runtime as _;

use crate::engine::{self, stderr, stdout};

#[test]
fn a_tasks_address_is_known_as_soon_as_the_engine_gives_it() {
    let Some(engine) = engine::start() else { return };
    let made = engine.docker(&["network", "create", "--subnet", "10.128.9.0/24", "mesh"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut joins = DockerEngine::new(engine.socket()).bridge_joins();
    let joined = runtime.spawn(async move { joins.next().await });
    // Events are sent from the subscription on, which takes a moment: containers are started until
    // one is seen.
    let names = (1..100).map(|number| format!("web.1.t{number}"));
    let mut started = Vec::new();
    for name in names {
        let ran =
            engine.docker(&["run", "-d", "--network", "mesh", "--name", &name, "busybox", "sleep", "600"]);
        assert!(ran.status.success(), "{}", stderr(&ran));
        started.push(name);
        if joined.is_finished() {
            break;
        }
    }
    let (task, address) = runtime.block_on(joined).unwrap().expect("the stream lives").unwrap();
    let name = format!("web.1.{task}");
    assert!(started.contains(&name), "{name} of {started:?}");
    let format = "{{.NetworkSettings.Networks.mesh.IPAddress}}";
    assert_eq!(stdout(&engine.docker(&["inspect", "-f", format, &name])), address.to_string());
}

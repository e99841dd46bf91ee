//! `mesh backup`: backups of the cluster in files, and their restoration.
//!
//! Making and restoring one goes over mesh-control's own socket, which only root opens: a backup
//! holds the cluster's key. Its files are sealed with a passphrase before they are written.

mod command;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hyper::Method;
use mesh_backup::files::{self, Listed};
use mesh_backup::{Backup, Cost, Manifest, Passphrase, sealed};
use mesh_state::api_paths::{BACKUP_PATH, INIT_PATH, RESTORE_PATH};
use mesh_state::ids::ClusterId;
use serde_json::{Value, json};

pub(crate) use command::{Access, BackupCommand};

use crate::cli::Output;
use crate::client::{Client, Host};
use crate::table;

/// The deadline of a call that reads or writes the whole cluster.
const CALL_LIMIT: Duration = Duration::from_mins(10);
/// The port of a restored manager.
const MANAGER_PORT: u16 = 2377;

impl Access {
    fn passphrase(&self) -> anyhow::Result<Passphrase> {
        passphrase(&self.passphrase_file)
    }

    /// One call of the manager.
    async fn call(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let socket = self.control_socket.clone();
        let answer = Client::new(Host::Unix(socket.clone())).bytes(method, path, body, CALL_LIMIT).await;
        answer.with_context(|| {
            format!(
                "ask mesh-control at {} (on a manager, as root; --control-socket names another)",
                socket.display()
            )
        })
    }
}

/// Runs one of the commands.
///
/// # Errors
/// A file or the passphrase can't be used, or the manager refuses.
pub(crate) async fn run(client: &Client, command: &BackupCommand, output: Output) -> anyhow::Result<String> {
    match command {
        BackupCommand::Save { file, access } => save(file.as_deref(), access, output).await,
        BackupCommand::Ls { directory } => Ok(list(&files::list(directory)?, output)),
        BackupCommand::Inspect { file, passphrase_file } => inspect(file, passphrase_file.as_deref(), output),
        BackupCommand::Prune { directory, keep } => prune(directory, *keep, output),
        BackupCommand::Restore { file, access, dry_run, force, advertise_addr } => {
            let backup = open(file, &access.passphrase()?)?;
            let wish = Wish { dry_run: *dry_run, force: *force, advertise: advertise_addr.as_deref() };
            restore(client, access, &backup, wish, output).await
        }
    }
}

fn passphrase(path: &Path) -> anyhow::Result<Passphrase> {
    if path != Path::new("-") {
        return Ok(files::passphrase(path)?);
    }
    let mut text = zeroize::Zeroizing::new(String::new());
    std::io::stdin().read_to_string(&mut text).context("read the passphrase from standard input")?;
    Ok(Passphrase::of_text(&text)?)
}

fn open(file: &Path, passphrase: &Passphrase) -> anyhow::Result<Backup> {
    let sealed = files::read(file)?;
    sealed::open(&sealed, passphrase).with_context(|| format!("open {}", file.display()))
}

async fn save(file: Option<&Path>, access: &Access, output: Output) -> anyhow::Result<String> {
    // A passphrase that can't be used is told before a manager is asked.
    let passphrase = access.passphrase()?;
    let answer = access.call(Method::GET, BACKUP_PATH, Bytes::new()).await?;
    let backup = Backup::decode(&answer).context("read the manager's answer")?;
    let name = files::name_of(backup.manifest());
    let path = match file {
        None => PathBuf::from(name),
        Some(directory) if directory.is_dir() => directory.join(name),
        Some(file) => file.to_owned(),
    };
    if path.exists() {
        bail!("{} exists already: name another file, or remove it", path.display());
    }
    let sealed = sealed::seal(&backup, &passphrase, Cost::USUAL)?;
    files::write(&path, &sealed)?;
    let manifest = backup.manifest();
    Ok(match output {
        Output::Json => json!({"file": path, "bytes": sealed.len(), "manifest": manifest}).to_string(),
        Output::Table => format!(
            "saved cluster {} at revision {} to {}: {} keys, {} bytes\n\
             Keep the passphrase elsewhere: without it nobody opens the file.",
            manifest.cluster,
            manifest.revision,
            path.display(),
            manifest.keys,
            sealed.len()
        ),
    })
}

fn list(listed: &[Listed], output: Output) -> String {
    if output == Output::Json {
        return listed.iter().map(as_json).collect::<Value>().to_string();
    }
    let rows = listed.iter().map(|one| {
        let path = one.path.display().to_string();
        match &one.manifest {
            Ok(manifest) => [
                shown(&manifest.taken_at),
                manifest.cluster.to_string(),
                manifest.revision.to_string(),
                manifest.keys.to_string(),
                one.bytes.to_string(),
                path,
            ],
            Err(error) => {
                let none = || "-".to_owned();
                [format!("({error})"), none(), none(), none(), one.bytes.to_string(), path]
            }
        }
    });
    table::render(["TAKEN", "CLUSTER", "REVISION", "KEYS", "BYTES", "FILE"], &rows.collect::<Vec<_>>())
}

fn as_json(one: &Listed) -> Value {
    let mut value = json!({"file": one.path, "bytes": one.bytes});
    match &one.manifest {
        Ok(manifest) => value["manifest"] = json!(manifest),
        Err(error) => value["error"] = json!(error.to_string()),
    }
    value
}

fn shown(moment: &mesh_state::Timestamp) -> String {
    moment.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn inspect(file: &Path, passphrase_file: Option<&Path>, output: Output) -> anyhow::Result<String> {
    let listed = files::look_at(file.to_owned())?;
    let manifest = listed.manifest.with_context(|| format!("read {}", file.display()))?;
    let opened = passphrase_file.map(|path| open(file, &passphrase(path)?)).transpose()?;
    let kinds = opened.as_ref().map(count);
    Ok(match output {
        Output::Json => json!({"file": file, "bytes": listed.bytes, "manifest": manifest, "opens": opened.is_some(), "kinds": kinds})
            .to_string(),
        Output::Table => {
            let Manifest { cluster, revision, mesh, taken_at, manager, keys, sha256, .. } = &manifest;
            let checked = match kinds {
                Some(kinds) => {
                    let kinds: Vec<String> =
                        kinds.iter().map(|(kind, number)| format!("{number} {kind}")).collect();
                    format!("Opens, and is whole: {}", kinds.join(", "))
                }
                None => "Not opened: give --passphrase-file to check it".to_owned(),
            };
            format!(
                "Cluster: {cluster}\nRevision: {revision}\nTaken: {} by manager {manager}, mesh {mesh}\nKeys: {keys}\nSHA-256: \
                 {sha256}\n{checked}",
                shown(taken_at)
            )
        }
    })
}

/// How many keys of each family a backup has: the part of the key behind the version.
fn count(backup: &Backup) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in backup.entries() {
        let watched = entry.key.strip_prefix(mesh_state::keys::ROOT);
        let kind = watched.map_or("sealed", |rest| rest.split('/').next().unwrap_or_default());
        *kinds.entry(kind.to_owned()).or_insert(0) += 1;
    }
    kinds
}

fn prune(directory: &Path, keep: u32, output: Output) -> anyhow::Result<String> {
    let listed = files::list(directory)?;
    let clusters: BTreeSet<&ClusterId> = listed
        .iter()
        .filter_map(|one| one.manifest.as_ref().ok())
        .map(|manifest| &manifest.cluster)
        .collect();
    let keep = usize::try_from(keep)?;
    let removed: Vec<PathBuf> =
        clusters.into_iter().flat_map(|cluster| files::beyond(&listed, cluster, keep)).collect();
    for path in &removed {
        files::remove(path)?;
    }
    Ok(match output {
        Output::Json => json!({ "removed": removed }).to_string(),
        Output::Table if removed.is_empty() => "nothing to remove".to_owned(),
        Output::Table => {
            let lines: Vec<String> =
                removed.iter().map(|path| format!("removed {}", path.display())).collect();
            lines.join("\n")
        }
    })
}

/// How a backup is to be restored.
#[derive(Debug, Clone, Copy)]
struct Wish<'a> {
    dry_run: bool,
    force: bool,
    advertise: Option<&'a str>,
}

async fn restore(
    client: &Client,
    access: &Access,
    backup: &Backup,
    wish: Wish<'_>,
    output: Output,
) -> anyhow::Result<String> {
    let path = format!("{RESTORE_PATH}?dry-run={}&force={}", u8::from(wish.dry_run), u8::from(wish.force));
    let body = Bytes::from(backup.encode()?.to_vec());
    let answer = access.call(Method::POST, &path, body).await?;
    let answer: Value = serde_json::from_slice(&answer).context("read the manager's answer")?;
    if !answer["Waits"].is_null() {
        return begin(client, access, backup, wish, output).await;
    }
    let left = answer["Left"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = match output {
        Output::Json => answer.to_string(),
        Output::Table => changes(&answer),
    };
    if left.is_empty() {
        return Ok(text);
    }
    println!("{text}");
    let reasons: Vec<&str> = left.iter().filter_map(Value::as_str).collect();
    bail!(
        "what still differs from the backup; restore it again once the reasons are gone:\n  {}",
        reasons.join("\n  ")
    )
}

/// What a restore onto a cluster changed, or would change.
fn changes(answer: &Value) -> String {
    let all = answer["Changes"].as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        return "The cluster is as in the backup.".to_owned();
    }
    let text = |change: &Value, field: &str| change[field].as_str().unwrap_or("?").to_owned();
    let rows: Vec<[String; 3]> =
        all.iter().map(|change| ["What", "Kind", "Name"].map(|field| text(change, field))).collect();
    let table = table::render(["CHANGE", "KIND", "NAME"], &rows);
    match answer["DryRun"].as_bool() {
        Some(true) => format!("{table}\nNothing was changed: this was a dry run."),
        _ => format!(
            "{table}\nRestored. Services that changed are being updated: docker service ps shows their tasks."
        ),
    }
}

/// Lets the manager, which waits with the backup, begin its cluster: by way of the agent if that
/// has no cluster either, as `docker swarm init` does, else for the node that the agent already is.
async fn begin(
    client: &Client,
    access: &Access,
    backup: &Backup,
    wish: Wish<'_>,
    output: Output,
) -> anyhow::Result<String> {
    let cluster = &backup.manifest().cluster;
    if wish.dry_run {
        return Ok(format!(
            "This manager has no cluster: it would become the first one of cluster {cluster}, with all {} keys of the backup.",
            backup.manifest().keys
        ));
    }
    let info = client
        .get("/info")
        .await
        .context("ask the agent of this node, which is to run beside its manager")?;
    let advertise = wish.advertise.unwrap_or_default();
    let node = if info["Swarm"]["LocalNodeState"] == "inactive" {
        let listen = format!("0.0.0.0:{MANAGER_PORT}");
        let order = json!({"ListenAddr": listen, "AdvertiseAddr": advertise, "Spec": {}});
        let made =
            client.bytes(Method::POST, "/swarm/init", Bytes::from(order.to_string()), CALL_LIMIT).await;
        let made = made.context("begin the cluster with the backup")?;
        serde_json::from_slice::<String>(&made).context("read the id of this node")?
    } else {
        let own = info["Swarm"]["NodeAddr"].as_str().unwrap_or_default();
        let address = if advertise.is_empty() { own } else { advertise };
        let address: std::net::IpAddr = address.parse().with_context(|| {
            format!("{address:?} is no address of this node: give one with --advertise-addr")
        })?;
        let order = json!({
            "advertise": std::net::SocketAddr::new(address, MANAGER_PORT),
            "listen": format!("0.0.0.0:{MANAGER_PORT}"),
        });
        access.call(Method::POST, INIT_PATH, Bytes::from(order.to_string())).await?;
        info["Swarm"]["NodeID"].as_str().unwrap_or_default().to_owned()
    };
    Ok(match output {
        Output::Json => json!({"cluster": cluster, "node": node}).to_string(),
        Output::Table => format!(
            "Cluster {cluster} is restored; this node ({node}) is its manager.\n\
             Machines that were members come back by themselves. Others join with the tokens of the backup: `mesh token manager` \
             and `mesh token worker` print them.\n\
             `docker node ls` shows members of then that are gone as Down: remove them with `docker node demote` and `docker node rm`."
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_restore_changes_is_told() {
        let answer =
            |dry_run: bool, changes: Value| json!({"DryRun": dry_run, "Changes": changes, "Left": []});
        let some = json!([{"Kind": "service", "Name": "web", "What": "removed"}]);
        let said = changes(&answer(true, some.clone()));
        assert!(said.contains("web") && said.contains("removed") && said.ends_with("a dry run."), "{said}");
        assert!(changes(&answer(false, some)).contains("Restored."));
        assert_eq!(changes(&answer(false, json!([]))), "The cluster is as in the backup.");
    }
}

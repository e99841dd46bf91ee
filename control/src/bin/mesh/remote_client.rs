//! `mesh client`: certificates by which docker on other machines uses the cluster.
//!
//! Invariant: a client's key is made here and goes nowhere but into its file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use mesh_runtime::private_file;
use mesh_state::api_paths::CLIENTS_PATH;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::cli::{ClientArgs, ClientCommand, Output};
use crate::client::{Client, Host, segment};
use crate::context;
use crate::table;

/// What every call needs that fails here.
const NEEDS: &str = "mesh client runs on a manager, as root: it calls mesh-control's own socket";

/// Runs one call; returns what it says.
pub(crate) async fn run(args: &ClientArgs, output: Output) -> anyhow::Result<String> {
    let client = Client::new(Host::Unix(args.socket.clone()));
    match &args.command {
        ClientCommand::Create { name, out, expires, context } => {
            create(&client, name, (out, *expires), *context, output).await
        }
        ClientCommand::Ls => list(&client, output).await,
        ClientCommand::Revoke { name } => {
            let path = format!("{CLIENTS_PATH}/{}", segment(name));
            client.delete(&path).await.with_context(|| format!("revoke {name} ({NEEDS})"))?;
            Ok(match output {
                Output::Table => format!("{name} is refused by all managers, and its connections are closed"),
                Output::Json => json!({ "name": name, "revoked": true }).to_string(),
            })
        }
    }
}

/// The files of one client.
struct Files {
    roots: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    /// Those in `directory`, which are named as docker looks for them there.
    fn of(directory: &Path) -> Self {
        let file = |name: &str| directory.join(name);
        Self { roots: file("ca.pem"), certificate: file("cert.pem"), key: file("key.pem") }
    }

    /// Refuses to overwrite what is there: it may be the only copy of another client's key.
    fn are_free(&self) -> anyhow::Result<()> {
        for path in [&self.roots, &self.certificate, &self.key] {
            ensure!(!path.exists(), "{} exists: give another --out, or move it away", path.display());
        }
        Ok(())
    }
}

async fn create(
    client: &Client,
    name: &str,
    (out, expires): (&Path, Duration),
    with_context: bool,
    output: Output,
) -> anyhow::Result<String> {
    private_file::create_private_dir(out).with_context(|| format!("make {}", out.display()))?;
    let out = out.canonicalize().with_context(|| format!("find {}", out.display()))?;
    let files = Files::of(&out);
    files.are_free()?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a key")?;
    let request = CertificateParams::default().serialize_request(&key).and_then(|request| request.pem());
    let key_pem = Zeroizing::new(key.serialize_pem());
    // First the key: a certificate without its key would have to be revoked.
    write(&files.key, &key_pem)?;
    let wanted = json!({
        "Name": name,
        "Request": request.context("make a certificate request")?,
        "LifeSeconds": expires.as_secs(),
    });
    let issued = match client.post(CLIENTS_PATH, &wanted).await {
        Ok(issued) => issued,
        Err(error) => {
            private_file::remove(&files.key).with_context(|| format!("remove {}", files.key.display()))?;
            return Err(error).with_context(|| format!("issue a certificate for {name} ({NEEDS})"));
        }
    };
    let text = |field: &str| {
        let text = issued[field].as_str();
        text.ok_or_else(|| client.unreadable(format!("no {field} in the answer to {CLIENTS_PATH}")))
    };
    write(&files.certificate, text("Certificate")?)?;
    write(&files.roots, text("Roots")?)?;
    let manager = issued["Managers"][0].as_str();
    let endpoint = context_endpoint(&files, manager.unwrap_or("MANAGER:2376"));
    let mut said = instructions(name, &out, &endpoint, (text("Until")?, manager));
    if with_context {
        if manager.is_none() {
            bail!("{said}\n\nno context was made, as no manager serves the API yet");
        }
        context::set(name, "The cluster, over TLS", &endpoint)?;
        said = format!("{said}\n\ndocker --context {name} goes there from this machine");
    }
    Ok(match output {
        Output::Table => said,
        Output::Json => json!({
            "name": name,
            "directory": out,
            "until": issued["Until"],
            "managers": issued["Managers"],
        })
        .to_string(),
    })
}

fn write(path: &Path, contents: &str) -> anyhow::Result<()> {
    private_file::replace(path, contents.as_bytes()).with_context(|| format!("write {}", path.display()))
}

/// The endpoint of a docker context with these files.
fn context_endpoint(files: &Files, manager: &str) -> String {
    format!(
        "host=tcp://{manager},ca={},cert={},key={}",
        files.roots.display(),
        files.certificate.display(),
        files.key.display(),
    )
}

/// What to do with the files.
fn instructions(name: &str, out: &Path, endpoint: &str, (until, manager): (&str, Option<&str>)) -> String {
    let directory = out.display();
    let host = manager.unwrap_or("MANAGER:2376");
    let off = match manager {
        Some(_) => "",
        None => {
            "\n\nNo manager serves remote clients yet: set docker-listen = \"0.0.0.0:2376\" in\n\
             /etc/mesh/control.toml on managers, and restart mesh-control there."
        }
    };
    format!(
        "{name} may use the cluster until {until}, as its operator.\n\n\
         ca.pem, cert.pem and key.pem are in {directory}. Carry them to the client's machine by a way\n\
         that nobody reads, and keep key.pem private. There:\n\n    \
         docker --tlsverify --tlscacert ca.pem --tlscert cert.pem --tlskey key.pem -H tcp://{host} service ls\n\n\
         or once and for all:\n\n    \
         docker context create {name} --docker {endpoint}\n    \
         docker --context {name} service ls{off}"
    )
}

async fn list(client: &Client, output: Output) -> anyhow::Result<String> {
    let listed = client.get(CLIENTS_PATH).await.with_context(|| format!("list clients ({NEEDS})"))?;
    if output == Output::Json {
        return Ok(listed.to_string());
    }
    let clients = listed.as_array().ok_or_else(|| client.unreadable("the clients are no list"))?;
    let cell = |client: &Value, field: &str| client[field].as_str().unwrap_or_default().to_owned();
    let row = |client: &Value| ["Name", "State", "CreatedAt", "Until"].map(|field| cell(client, field));
    let rows: Vec<_> = clients.iter().map(row).collect();
    Ok(table::render(["NAME", "STATE", "CREATED", "EXPIRES"], &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instructions_can_be_pasted() {
        let files = Files::of(Path::new("/k"));
        let endpoint = context_endpoint(&files, "10.0.0.1:2376");
        assert_eq!(endpoint, "host=tcp://10.0.0.1:2376,ca=/k/ca.pem,cert=/k/cert.pem,key=/k/key.pem");
        let said = |manager| instructions("alice", Path::new("/k"), &endpoint, ("2027-01-01", manager));
        let on = said(Some("10.0.0.1:2376"));
        assert!(on.contains("-H tcp://10.0.0.1:2376 service ls\n"), "{on}");
        assert!(on.contains(&format!("\n    docker context create alice --docker {endpoint}\n")), "{on}");
        assert!(!on.contains("docker-listen") && said(None).contains("docker-listen = \"0.0.0.0:2376\""));
    }

    #[test]
    fn nothing_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::of(directory.path());
        assert!(files.are_free().is_ok());
        write(&files.key, "k").unwrap();
        let refused = files.are_free().unwrap_err().to_string();
        assert!(refused.contains("key.pem exists"), "{refused}");
    }
}

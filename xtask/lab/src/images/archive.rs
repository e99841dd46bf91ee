//! Writes an archive in the format of `docker save`: `manifest.json`, one configuration per image,
//! layers as tar files.
//!
//! Everything is named by its SHA-256 and has no time stamp, so the same files make the same image
//! ids.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use mesh_checkout::command::Program;

/// How an image is run, as in a Dockerfile.
#[derive(Debug, Default)]
pub(super) struct Config {
    pub(super) entrypoint: Vec<&'static str>,
    pub(super) cmd: Vec<&'static str>,
    pub(super) env: Vec<&'static str>,
    /// Exposed ports, such as `80/tcp`.
    pub(super) ports: Vec<&'static str>,
    pub(super) stop_signal: Option<&'static str>,
}

/// A layer of the archive.
#[derive(Debug)]
pub(super) struct Layer {
    /// The SHA-256 of the tar, in hex.
    digest: String,
}

impl Layer {
    fn file(&self) -> String {
        format!("{}.tar", self.digest)
    }
}

/// An archive under construction, in a directory.
pub(super) struct Archive {
    directory: PathBuf,
    manifest: Vec<Value>,
}

impl Archive {
    pub(super) fn new(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(Self { directory, manifest: Vec::new() })
    }

    /// Adds the files below `root` as a layer.
    pub(super) fn layer(&mut self, root: &Path) -> Result<Layer> {
        let unnamed = self.directory.join("layer.tar");
        pack(root, &unnamed)?;
        let layer = Layer { digest: sha256(&unnamed)? };
        fs::rename(&unnamed, self.directory.join(layer.file())).context("name a layer by its digest")?;
        Ok(layer)
    }

    /// Adds an image with these layers, the lowest first.
    pub(super) fn image(&mut self, tag: &str, layers: &[&Layer], config: &Config) -> Result<()> {
        let text =
            serde_json::to_vec(&image_config(layers, config)).context("encode an image's configuration")?;
        let unnamed = self.directory.join("config.json");
        fs::write(&unnamed, text).with_context(|| format!("write {}", unnamed.display()))?;
        let name = format!("{}.json", sha256(&unnamed)?);
        fs::rename(&unnamed, self.directory.join(&name)).context("name a configuration by its digest")?;
        let files: Vec<String> = layers.iter().map(|layer| layer.file()).collect();
        self.manifest.push(json!({"Config": name, "RepoTags": [tag], "Layers": files}));
        Ok(())
    }

    /// Writes the archive to `file`.
    pub(super) fn finish(self, file: &Path) -> Result<PathBuf> {
        let manifest = serde_json::to_vec(&self.manifest).context("encode the manifest")?;
        fs::write(self.directory.join("manifest.json"), manifest).context("write the manifest")?;
        pack(&self.directory, file)?;
        Ok(file.to_owned())
    }
}

fn image_config(layers: &[&Layer], config: &Config) -> Value {
    let ports: serde_json::Map<String, Value> =
        config.ports.iter().map(|port| ((*port).to_owned(), json!({}))).collect();
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect();
    let mut run = json!({"Env": config.env, "ExposedPorts": ports});
    if !config.entrypoint.is_empty() {
        run["Entrypoint"] = json!(config.entrypoint);
    }
    if !config.cmd.is_empty() {
        run["Cmd"] = json!(config.cmd);
    }
    if let Some(signal) = config.stop_signal {
        run["StopSignal"] = json!(signal);
    }
    json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

/// Go's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn pack(root: &Path, file: &Path) -> Result<()> {
    Program::new("tar")
        .args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"])
        .arg(format!("--file={}", file.display()))
        .arg(format!("--directory={}", root.display()))
        .arg(".")
        .run()
}

fn sha256(file: &Path) -> Result<String> {
    let line = Program::new("sha256sum").arg(file).output()?;
    let digest = line.split_whitespace().next().context("sha256sum printed nothing")?;
    Ok(digest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_names_layers_and_leaves_out_what_is_unset() {
        let layer = Layer { digest: "ab".into() };
        let config = Config { cmd: vec!["sh"], ports: vec!["80/tcp"], ..Config::default() };
        let value = image_config(&[&layer], &config);
        assert_eq!(value["rootfs"]["diff_ids"], json!(["sha256:ab"]), "layers by digest");
        assert_eq!(value["config"]["ExposedPorts"], json!({"80/tcp": {}}), "ports as Docker's set");
        assert!(value["config"].get("Entrypoint").is_none(), "an empty entrypoint would hide the command");
        assert!(value["config"].get("StopSignal").is_none(), "no stop signal was asked for");
    }
}

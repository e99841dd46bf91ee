//! Real applications, of Debian's packages: images that only some tests want, made when they ask
//! for them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::archive::{Archive, Config};
use super::{PATH, rootfs};

/// An application that a node can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Application {
    /// mariadb:10.11, server and client
    Mariadb,
    /// registry:2, Docker's registry
    Registry,
}

const MARIADBD: &str = "/usr/sbin/mariadbd";
const MARIADB: &str = "/usr/bin/mariadb";
const REGISTRY: &str = "/usr/bin/docker-registry";

/// Makes the database on first start, with passwords out of files as the well-known image does, and
/// becomes the server. What sets the passwords is in memory: a container's `/dev/shm` is a tmpfs.
const MARIADB_ENTRYPOINT: &str = r#"#!/bin/sh
set -eu
data=/var/lib/mysql share=/usr/share/mysql init=/dev/shm/init.sql
if [ ! -e "$data/mysql" ]; then
    { printf 'create database mysql;\nuse mysql;\nset @auth_root_socket=NULL;\nset @skip_auth_anonymous=1;\n'
      cat "$share/mysql_system_tables.sql" "$share/mysql_performance_tables.sql" "$share/mysql_system_tables_data.sql"
    } | mariadbd --bootstrap > /dev/null
fi
quoted() { sed -e 's/\\/\\\\/g' -e "s/'/''/g" "$1"; }
umask 077
cat > "$init" <<END
alter user root@localhost identified by '$(quoted "$MARIADB_ROOT_PASSWORD_FILE")';
create database if not exists $MARIADB_DATABASE;
create or replace user $MARIADB_USER@'%' identified by '$(quoted "$MARIADB_PASSWORD_FILE")';
grant all on $MARIADB_DATABASE.* to $MARIADB_USER@'%';
END
chown mysql "$init"
exec mariadbd "$@"
"#;

const MARIADB_CONF: &str = "\
[mariadbd]
user = mysql
datadir = /var/lib/mysql
socket = /run/mysqld/mysqld.sock
lc_messages_dir = /usr/share/mysql
bind_address = *
skip_name_resolve
init_file = /dev/shm/init.sql
innodb_buffer_pool_size = 16M
innodb_log_file_size = 8M
innodb_use_native_aio = 0
";

const MARIADB_PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nmysql:x:100:100:mysql:/nonexistent:/bin/false\n";
const MARIADB_GROUP: &str = "root:x:0:\nmysql:x:100:\n";

/// Makes the archive of an application's image in `directory`.
pub(super) fn make(application: Application, directory: &Path) -> Result<PathBuf> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    let roots = directory.join("roots");
    let mut archive = Archive::new(directory.join("archive"))?;
    // The layer that the lab's own images have: engines have it already.
    let busybox = archive.layer(&rootfs::busybox(&roots.join("busybox"))?)?;
    match application {
        Application::Mariadb => {
            let layer = archive.layer(&mariadb(&roots.join("mariadb"))?)?;
            let config = Config {
                entrypoint: vec!["/entrypoint"],
                env: vec![PATH],
                ports: vec!["3306/tcp"],
                ..Config::default()
            };
            archive.image("mariadb:10.11", &[&busybox, &layer], &config)?;
        }
        Application::Registry => {
            let layer = archive.layer(&registry(&roots.join("registry"))?)?;
            let config = Config {
                entrypoint: vec![REGISTRY],
                cmd: vec!["serve", "/etc/docker/registry/config.yml"],
                env: vec![PATH],
                ports: vec!["5000/tcp"],
                ..Config::default()
            };
            archive.image("registry:2", &[&busybox, &layer], &config)?;
        }
    }
    archive.finish(&directory.join("image.tar"))
}

fn mariadb(root: &Path) -> Result<PathBuf> {
    for program in [MARIADBD, MARIADB] {
        rootfs::program(root, Path::new(program))?;
    }
    let share = Path::new("/usr/share/mysql");
    let files = [
        "english/errmsg.sys",
        "charsets/Index.xml",
        "mysql_system_tables.sql",
        "mysql_performance_tables.sql",
        "mysql_system_tables_data.sql",
    ];
    for file in files {
        let from = share.join(file);
        rootfs::install(&from, &root.join("usr/share/mysql").join(file))?;
    }
    rootfs::write(root, "etc/mysql/my.cnf", MARIADB_CONF)?;
    rootfs::write(root, "etc/passwd", MARIADB_PASSWD)?;
    rootfs::write(root, "etc/group", MARIADB_GROUP)?;
    rootfs::write(root, "entrypoint", MARIADB_ENTRYPOINT)?;
    rootfs::mark_executable(&root.join("entrypoint"))?;
    ["run/mysqld", "var/lib/mysql"]
        .iter()
        .try_for_each(|directory| rootfs::make_open_dir(root, directory))?;
    Ok(root.to_owned())
}

fn registry(root: &Path) -> Result<PathBuf> {
    rootfs::program(root, Path::new(REGISTRY))?;
    Ok(root.to_owned())
}

//! Real applications from Debian's packages: images that only some tests need, made on request.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::archive::{Archive, Config};
use super::{PATH, rootfs};

/// An application that nodes can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Application {
    /// mariadb:10.11, server and client
    Mariadb,
    /// php:8.2-fpm, with its clients of MariaDB and Redis
    Php,
    /// redis:7
    Redis,
    /// registry:2, Docker's registry
    Registry,
}

const MARIADBD: &str = "/usr/sbin/mariadbd";
const MARIADB: &str = "/usr/bin/mariadb";
const REGISTRY: &str = "/usr/bin/docker-registry";
const PHP_FPM: &str = "/usr/sbin/php-fpm8.2";
const GETENT: &str = "/usr/bin/getent";
const REDIS: &str = "/usr/bin/redis-server";

/// Initialises the database at the first start, with passwords from files as the well-known image
/// does, then becomes the server. The SQL with the passwords stays in memory: a container's
/// `/dev/shm` is a tmpfs.
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

/// Where Debian keeps PHP's modules: the directory is named by PHP's interface of modules.
const PHP_MODULES: &str = "/usr/lib/php/20220829";
/// In the order of their loading: each wants those before it.
const PHP_LOADED: [&str; 4] = ["mysqlnd", "mysqli", "igbinary", "redis"];

/// Answers FastCGI on port 9000 of every address, and tells its errors to `docker logs`.
const PHP_FPM_CONF: &str = "\
[global]
error_log = /proc/self/fd/2
daemonize = no
[www]
user = www-data
group = www-data
listen = 9000
pm = static
pm.max_children = 4
catch_workers_output = yes
decorate_workers_output = no
";

const UTC: &str = "/usr/share/zoneinfo/UTC";

const NSSWITCH_CONF: &str = "hosts: files dns\n";

/// Makes the archive of an application's image in `directory`.
pub(super) fn make(application: Application, directory: &Path) -> Result<PathBuf> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    let roots = directory.join("roots");
    let mut archive = Archive::new(directory.join("archive"))?;
    // The same layer as in the lab's own images: engines have it already.
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
        Application::Php => {
            let layer = archive.layer(&php(&roots.join("php"))?)?;
            let config = Config {
                cmd: vec![PHP_FPM, "-c", "/etc/php/php.ini", "-y", "/etc/php/fpm.conf"],
                env: vec![PATH],
                ports: vec!["9000/tcp"],
                stop_signal: Some("SIGQUIT"),
                ..Config::default()
            };
            archive.image("php:8.2-fpm", &[&busybox, &layer], &config)?;
        }
        Application::Redis => {
            let layer = archive.layer(&redis(&roots.join("redis"))?)?;
            let config = Config {
                cmd: vec![REDIS, "--protected-mode", "no", "--save", ""],
                env: vec![PATH],
                ports: vec!["6379/tcp"],
                ..Config::default()
            };
            archive.image("redis:7", &[&busybox, &layer], &config)?;
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

/// PHP-FPM, and `getent`, which asks as every program of the image does: by the C library.
fn php(root: &Path) -> Result<PathBuf> {
    for program in [PHP_FPM, GETENT] {
        rootfs::program(root, Path::new(program))?;
    }
    let modules = Path::new(PHP_MODULES);
    let mut loaded = vec![format!("extension_dir = {PHP_MODULES}\n")];
    for module in PHP_LOADED {
        rootfs::program(root, &modules.join(module).with_extension("so"))?;
        loaded.push(format!("extension = {module}\n"));
    }
    // The only time zone that PHP uses; without it, it warns at each start.
    rootfs::install(Path::new(UTC), &root.join(UTC.trim_start_matches('/')))?;
    rootfs::write(root, "etc/php/php.ini", &loaded.concat())?;
    rootfs::write(root, "etc/php/fpm.conf", PHP_FPM_CONF)?;
    rootfs::write(root, "etc/nsswitch.conf", NSSWITCH_CONF)?;
    Ok(root.to_owned())
}

fn redis(root: &Path) -> Result<PathBuf> {
    rootfs::program(root, Path::new(REDIS))?;
    Ok(root.to_owned())
}

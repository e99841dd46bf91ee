//! The fields of Docker's objects that a client may send, and the default of each.

use super::Shape::{self, Any, Figure, List, Map, Mark, Object, Said, Text, Word};

/// A second, in the nanoseconds of Docker's durations.
const SECOND: i64 = 1_000_000_000;

/// Docker's `ServiceSpec`: the body of `docker service create`.
pub(crate) static SERVICE_SPEC: Shape = Object(&[
    ("Name", &Any),
    ("Labels", &Map),
    ("TaskTemplate", &TASK_SPEC),
    ("Mode", &SERVICE_MODE),
    ("UpdateConfig", &UPDATE_CONFIG),
    ("RollbackConfig", &UPDATE_CONFIG),
    ("Networks", &NETWORK_ATTACHMENTS),
    ("EndpointSpec", &ENDPOINT_SPEC),
]);

/// Docker's `NodeSpec`: what `docker node update` changes.
pub(crate) static NODE_SPEC: Shape =
    Object(&[("Name", &Any), ("Labels", &Map), ("Role", &Word("")), ("Availability", &Word(""))]);

/// `SecretSpec` and `ConfigSpec`.
pub(crate) static DEPENDENCY_SPEC: Shape = Object(&[
    ("Name", &Any),
    ("Labels", &Map),
    ("Data", &Any),
    ("Driver", &Object(&[("Name", &Any), ("Options", &Map)])),
    ("Templating", &Object(&[("Name", &Any), ("Options", &Map)])),
]);

/// The `Spec` of Docker's `Swarm`: what `docker swarm update` changes.
pub(crate) static SWARM_SPEC: Shape = Object(&[
    ("Name", &Any),
    ("Labels", &Map),
    ("Orchestration", &Object(&[("TaskHistoryRetentionLimit", &Any)])),
    (
        "Raft",
        &Object(&[
            ("SnapshotInterval", &Any),
            ("KeepOldSnapshots", &Any),
            ("LogEntriesForSlowFollowers", &Any),
            ("ElectionTick", &Any),
            ("HeartbeatTick", &Any),
        ]),
    ),
    ("Dispatcher", &Object(&[("HeartbeatPeriod", &Any)])),
    (
        "CAConfig",
        &Object(&[
            ("NodeCertExpiry", &Any),
            ("ExternalCAs", &Any),
            ("SigningCACert", &Any),
            ("SigningCAKey", &Any),
            ("ForceRotate", &Any),
        ]),
    ),
    ("TaskDefaults", &Object(&[("LogDriver", &Object(&[("Name", &Any), ("Options", &Map)]))])),
    ("EncryptionConfig", &Object(&[("AutoLockManagers", &Any)])),
]);

/// Docker's `NetworkCreateRequest`: the body of `docker network create`.
pub(crate) static NETWORK_SPEC: Shape = Object(&[
    ("Name", &Any),
    ("CheckDuplicate", &Any),
    ("Driver", &Any),
    ("Scope", &Any),
    ("EnableIPv6", &Any),
    ("EnableIPv4", &Any),
    (
        "IPAM",
        &Object(&[
            ("Driver", &Any),
            ("Options", &Map),
            (
                "Config",
                &List(&Object(&[
                    ("Subnet", &Any),
                    ("IPRange", &Any),
                    ("Gateway", &Any),
                    ("AuxiliaryAddresses", &Map),
                ])),
            ),
        ]),
    ),
    ("Internal", &Any),
    ("Attachable", &Any),
    ("Ingress", &Any),
    ("ConfigOnly", &Any),
    ("ConfigFrom", &Any),
    ("Options", &Map),
    ("Labels", &Map),
]);

static SERVICE_MODE: Shape = Object(&[
    ("Replicated", &Mark(&[("Replicas", &Figure(1))])),
    ("Global", &Mark(&[])),
    ("ReplicatedJob", &Mark(&[("MaxConcurrent", &Figure(1)), ("TotalCompletions", &Said)])),
    ("GlobalJob", &Mark(&[])),
]);

static UPDATE_CONFIG: Shape = Object(&[
    ("Parallelism", &Any),
    ("Delay", &Any),
    ("FailureAction", &Word("pause")),
    ("Monitor", &Figure(5 * SECOND)),
    ("MaxFailureRatio", &Any),
    ("Order", &Word("stop-first")),
]);

/// The networks of a service.
pub(crate) static NETWORK_ATTACHMENTS: Shape =
    List(&Object(&[("Target", &Any), ("Aliases", &Any), ("DriverOpts", &Map)]));

/// Docker's `EndpointSpec`: a service's published ports.
pub(crate) static ENDPOINT_SPEC: Shape = Object(&[
    ("Mode", &Word("vip")),
    (
        "Ports",
        &List(&Object(&[
            ("Name", &Any),
            ("Protocol", &Word("tcp")),
            ("TargetPort", &Any),
            ("PublishedPort", &Any),
            ("PublishMode", &Word("ingress")),
        ])),
    ),
]);

/// Docker's `TaskSpec`: the template of a service's tasks.
pub(crate) static TASK_SPEC: Shape = Object(&[
    ("ContainerSpec", &CONTAINER_SPEC),
    ("PluginSpec", &Any),
    ("NetworkAttachmentSpec", &Object(&[("ContainerID", &Any)])),
    ("Resources", &RESOURCES),
    (
        "RestartPolicy",
        &Object(&[
            ("Condition", &Word("any")),
            ("Delay", &Figure(5 * SECOND)),
            ("MaxAttempts", &Any),
            ("Window", &Any),
        ]),
    ),
    ("Placement", &PLACEMENT),
    ("Networks", &NETWORK_ATTACHMENTS),
    ("LogDriver", &Object(&[("Name", &Any), ("Options", &Map)])),
    ("ForceUpdate", &Any),
    ("Runtime", &Text("container")),
]);

static RESOURCES: Shape = Object(&[
    ("Limits", &Object(&[("NanoCPUs", &Any), ("MemoryBytes", &Any), ("Pids", &Any)])),
    (
        "Reservations",
        &Object(&[("NanoCPUs", &Any), ("MemoryBytes", &Any), ("GenericResources", &GENERIC_RESOURCES)]),
    ),
    ("SwapBytes", &Said),
    ("MemorySwappiness", &Said),
]);

static GENERIC_RESOURCES: Shape = List(&Object(&[
    ("NamedResourceSpec", &Object(&[("Kind", &Any), ("Value", &Any)])),
    ("DiscreteResourceSpec", &Object(&[("Kind", &Any), ("Value", &Any)])),
]));

static PLACEMENT: Shape = Object(&[
    ("Constraints", &Any),
    ("Preferences", &List(&Object(&[("Spread", &Object(&[("SpreadDescriptor", &Any)]))]))),
    ("MaxReplicas", &Any),
    ("Platforms", &List(&Object(&[("Architecture", &Any), ("OS", &Any)]))),
]);

static CONTAINER_SPEC: Shape = Object(&[
    ("Image", &Any),
    ("Labels", &Map),
    ("Command", &Any),
    ("Args", &Any),
    ("Hostname", &Any),
    ("Env", &Any),
    ("Dir", &Any),
    ("User", &Any),
    ("Groups", &Any),
    (
        "Privileges",
        &Object(&[
            ("CredentialSpec", &Any),
            ("SELinuxContext", &SELINUX),
            ("Seccomp", &Object(&[("Mode", &Text("default")), ("Profile", &Any)])),
            ("AppArmor", &Object(&[("Mode", &Text("default"))])),
            ("NoNewPrivileges", &Any),
        ]),
    ),
    ("Init", &Said),
    ("StopSignal", &Any),
    ("TTY", &Any),
    ("OpenStdin", &Any),
    ("ReadOnly", &Any),
    ("Mounts", &List(&MOUNT)),
    ("StopGracePeriod", &Figure(10 * SECOND)),
    (
        "Healthcheck",
        &Object(&[
            ("Test", &Any),
            ("Interval", &Any),
            ("Timeout", &Any),
            ("StartPeriod", &Any),
            ("StartInterval", &Any),
            ("Retries", &Any),
        ]),
    ),
    ("Hosts", &Any),
    ("DNSConfig", &Object(&[("Nameservers", &Any), ("Search", &Any), ("Options", &Any)])),
    ("Secrets", &List(&Object(&[("File", &FILE_TARGET), ("SecretID", &Any), ("SecretName", &Any)]))),
    (
        "Configs",
        &List(&Object(&[
            ("File", &FILE_TARGET),
            ("Runtime", &Mark(&[])),
            ("ConfigID", &Any),
            ("ConfigName", &Any),
        ])),
    ),
    ("Isolation", &Text("default")),
    ("Sysctls", &Map),
    ("CapabilityAdd", &Any),
    ("CapabilityDrop", &Any),
    ("Ulimits", &List(&Object(&[("Name", &Any), ("Hard", &Any), ("Soft", &Any)]))),
    ("OomScoreAdj", &Any),
]);

static SELINUX: Shape =
    Object(&[("Disable", &Any), ("User", &Any), ("Role", &Any), ("Type", &Any), ("Level", &Any)]);

static FILE_TARGET: Shape =
    Object(&[("Name", &Any), ("UID", &Text("0")), ("GID", &Text("0")), ("Mode", &Figure(0o444))]);

static MOUNT: Shape = Object(&[
    ("Type", &Word("")),
    ("Source", &Any),
    ("Target", &Any),
    ("ReadOnly", &Any),
    ("Consistency", &Text("default")),
    (
        "BindOptions",
        &Object(&[
            ("Propagation", &Text("rprivate")),
            ("NonRecursive", &Any),
            ("CreateMountpoint", &Any),
            ("ReadOnlyNonRecursive", &Any),
            ("ReadOnlyForceRecursive", &Any),
        ]),
    ),
    (
        "VolumeOptions",
        &Object(&[
            ("NoCopy", &Any),
            ("Labels", &Map),
            ("Subpath", &Any),
            ("DriverConfig", &Object(&[("Name", &Any), ("Options", &Map)])),
        ]),
    ),
    ("ImageOptions", &Object(&[("Subpath", &Any)])),
    ("TmpfsOptions", &Object(&[("SizeBytes", &Any), ("Mode", &Any), ("Options", &Any)])),
    ("ClusterOptions", &Any),
]);

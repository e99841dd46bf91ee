//! The fields of Docker's objects, as far as a client may send them: what [`super::go_json`] respells.

use super::go_json::Shape::{self, Any, List, Object, Word};

/// `ServiceSpec`.
pub(crate) static SERVICE_SPEC: Shape = Object(&[
    ("Name", &Any),
    ("Labels", &Any),
    ("TaskTemplate", &TASK_SPEC),
    ("Mode", &SERVICE_MODE),
    ("UpdateConfig", &UPDATE_CONFIG),
    ("RollbackConfig", &UPDATE_CONFIG),
    ("Networks", &NETWORK_ATTACHMENTS),
    ("EndpointSpec", &ENDPOINT_SPEC),
]);

/// `NodeSpec`.
pub(crate) static NODE_SPEC: Shape =
    Object(&[("Name", &Any), ("Labels", &Any), ("Role", &Word), ("Availability", &Word)]);

/// `SecretSpec` and `ConfigSpec`.
pub(crate) static DEPENDENCY_SPEC: Shape = Object(&[
    ("Name", &Any),
    ("Labels", &Any),
    ("Data", &Any),
    ("Driver", &Object(&[("Name", &Any), ("Options", &Any)])),
    ("Templating", &Object(&[("Name", &Any), ("Options", &Any)])),
]);

/// A swarm's `Spec`.
pub(crate) static SWARM_SPEC: Shape = Object(&[
    ("Name", &Any),
    ("Labels", &Any),
    ("Orchestration", &Object(&[("TaskHistoryRetentionLimit", &Any)])),
    ("Raft", &Object(&[("SnapshotInterval", &Any), ("KeepOldSnapshots", &Any)])),
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
    ("TaskDefaults", &Object(&[("LogDriver", &Any)])),
    ("EncryptionConfig", &Object(&[("AutoLockManagers", &Any)])),
]);

/// `NetworkCreateRequest`.
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
            ("Options", &Any),
            (
                "Config",
                &List(&Object(&[
                    ("Subnet", &Any),
                    ("IPRange", &Any),
                    ("Gateway", &Any),
                    ("AuxiliaryAddresses", &Any),
                ])),
            ),
        ]),
    ),
    ("Internal", &Any),
    ("Attachable", &Any),
    ("Ingress", &Any),
    ("ConfigOnly", &Any),
    ("ConfigFrom", &Any),
    ("Options", &Any),
    ("Labels", &Any),
]);

static SERVICE_MODE: Shape = Object(&[
    ("Replicated", &Object(&[("Replicas", &Any)])),
    ("Global", &Object(&[])),
    ("ReplicatedJob", &Object(&[("MaxConcurrent", &Any), ("TotalCompletions", &Any)])),
    ("GlobalJob", &Object(&[])),
]);

static UPDATE_CONFIG: Shape = Object(&[
    ("Parallelism", &Any),
    ("Delay", &Any),
    ("FailureAction", &Word),
    ("Monitor", &Any),
    ("MaxFailureRatio", &Any),
    ("Order", &Word),
]);

static NETWORK_ATTACHMENTS: Shape =
    List(&Object(&[("Target", &Any), ("Aliases", &Any), ("DriverOpts", &Any)]));

static ENDPOINT_SPEC: Shape = Object(&[
    ("Mode", &Word),
    (
        "Ports",
        &List(&Object(&[
            ("Name", &Any),
            ("Protocol", &Word),
            ("TargetPort", &Any),
            ("PublishedPort", &Any),
            ("PublishMode", &Word),
        ])),
    ),
]);

static TASK_SPEC: Shape = Object(&[
    ("ContainerSpec", &CONTAINER_SPEC),
    ("PluginSpec", &Any),
    ("NetworkAttachmentSpec", &Object(&[("ContainerID", &Any)])),
    ("Resources", &RESOURCES),
    (
        "RestartPolicy",
        &Object(&[("Condition", &Word), ("Delay", &Any), ("MaxAttempts", &Any), ("Window", &Any)]),
    ),
    ("Placement", &PLACEMENT),
    ("Networks", &NETWORK_ATTACHMENTS),
    ("LogDriver", &Object(&[("Name", &Any), ("Options", &Any)])),
    ("ForceUpdate", &Any),
    ("Runtime", &Any),
]);

static RESOURCES: Shape = Object(&[
    ("Limits", &Object(&[("NanoCPUs", &Any), ("MemoryBytes", &Any), ("Pids", &Any)])),
    (
        "Reservations",
        &Object(&[("NanoCPUs", &Any), ("MemoryBytes", &Any), ("GenericResources", &GENERIC_RESOURCES)]),
    ),
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
    ("Labels", &Any),
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
            ("SELinuxContext", &Any),
            ("Seccomp", &Any),
            ("AppArmor", &Any),
            ("NoNewPrivileges", &Any),
        ]),
    ),
    ("Init", &Any),
    ("StopSignal", &Any),
    ("TTY", &Any),
    ("OpenStdin", &Any),
    ("ReadOnly", &Any),
    ("Mounts", &List(&MOUNT)),
    ("StopGracePeriod", &Any),
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
            ("Runtime", &Any),
            ("ConfigID", &Any),
            ("ConfigName", &Any),
        ])),
    ),
    ("Isolation", &Any),
    ("Sysctls", &Any),
    ("CapabilityAdd", &Any),
    ("CapabilityDrop", &Any),
    ("Ulimits", &List(&Object(&[("Name", &Any), ("Hard", &Any), ("Soft", &Any)]))),
    ("OomScoreAdj", &Any),
]);

static FILE_TARGET: Shape = Object(&[("Name", &Any), ("UID", &Any), ("GID", &Any), ("Mode", &Any)]);

static MOUNT: Shape = Object(&[
    ("Type", &Word),
    ("Source", &Any),
    ("Target", &Any),
    ("ReadOnly", &Any),
    ("Consistency", &Any),
    (
        "BindOptions",
        &Object(&[
            ("Propagation", &Any),
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
            ("Labels", &Any),
            ("Subpath", &Any),
            ("DriverConfig", &Object(&[("Name", &Any), ("Options", &Any)])),
        ]),
    ),
    ("ImageOptions", &Object(&[("Subpath", &Any)])),
    ("TmpfsOptions", &Object(&[("SizeBytes", &Any), ("Mode", &Any), ("Options", &Any)])),
    ("ClusterOptions", &Any),
]);

import { cleanDeep } from './host/host-text.js';

/**
 * What can go wrong, for API and worker alike. The family of a code decides its HTTP status, whether a job tries again,
 * and the log level; nothing else in the code knows any of the three.
 */
export type ErrorFamily =
  | 'invalid'
  | 'unauthorized'
  | 'forbidden'
  | 'notFound'
  | 'conflict'
  | 'unavailable'
  | 'internal';

interface ErrorDefinition {
  family: ErrorFamily;
  /** Overrides the family's HTTP status where the protocol has a better one. */
  status?: number;
  title: string;
  /** What the operator can do next. */
  nextStep: string;
}

const definitions = {
  // Requests
  request_invalid: {
    family: 'invalid',
    status: 422,
    title: 'The request does not match the schema',
    nextStep: 'Correct the fields named in `issues`; /docs shows the schema.',
  },
  request_malformed: {
    family: 'invalid',
    status: 400,
    title: 'The request could not be read',
    nextStep: 'Send well-formed JSON with content-type application/json.',
  },
  media_type_unsupported: {
    family: 'invalid',
    status: 415,
    title: 'The media type is not supported',
    nextStep: 'Send content-type application/json.',
  },
  payload_too_large: {
    family: 'invalid',
    status: 413,
    title: 'The request body is too large',
    nextStep: 'Send bundles through /v1/uploads, in parts.',
  },
  token_missing: {
    family: 'unauthorized',
    title: 'A bearer token is required',
    nextStep: 'Send `Authorization: Bearer <token>`; the first token is in admin.token in the data folder.',
  },
  token_invalid: {
    family: 'unauthorized',
    title: 'The token is not valid',
    nextStep: 'Use the token in admin.token in the data folder of the DU.',
  },
  route_internal: {
    family: 'forbidden',
    title: 'Only the services of Airdock call this route',
    nextStep: 'Use the resources of the API: a backup or a restore moves states, a host configuration streams images.',
  },
  login_slowed: {
    family: 'unavailable',
    status: 429,
    title: 'Too many failed logins from this address',
    nextStep:
      'Use the right token, which is taken at any time; on the DU itself the Unix socket of the API needs none.',
  },
  request_timeout: {
    family: 'unavailable',
    status: 408,
    title: 'The request did not arrive in time',
    nextStep: 'Repeat it over a connection that is fast enough; send large files through /v1/uploads, in parts.',
  },
  header_too_large: {
    family: 'invalid',
    status: 431,
    title: 'The headers of the request are too large',
    nextStep: 'Send fewer and shorter headers.',
  },
  uri_too_long: {
    family: 'invalid',
    status: 414,
    title: 'The URL is too long',
    nextStep: 'Shorten the ids or the query.',
  },
  method_not_allowed: {
    family: 'invalid',
    status: 405,
    title: 'The method is not supported here',
    nextStep: 'See /docs for the routes and their methods.',
  },
  connections_exceeded: {
    family: 'unavailable',
    title: 'Too many connections are open',
    nextStep: 'Close some, or wait; on the DU itself the Unix socket of the API has connections of its own.',
  },
  streams_exceeded: {
    family: 'unavailable',
    status: 429,
    title: 'Too many streams are open',
    nextStep: 'Close some of them, or look at the job with GET /v1/jobs/{id} now and then.',
  },
  route_not_found: { family: 'notFound', title: 'There is no such route', nextStep: 'See /docs for the routes.' },
  resource_not_found: {
    family: 'notFound',
    title: 'There is no such resource',
    nextStep: 'List the collection to find its id.',
  },
  resource_exists: {
    family: 'conflict',
    title: 'A resource with this name exists',
    nextStep: 'Choose another name, or use the existing resource.',
  },
  resource_in_use: { family: 'conflict', title: 'The resource is in use', nextStep: 'Remove what uses it first.' },
  resource_changed: {
    family: 'conflict',
    status: 412,
    title: 'The resource was changed by someone else',
    nextStep: 'Read it again and repeat the change with the new ETag.',
  },
  cursor_invalid: {
    family: 'invalid',
    status: 422,
    title: 'The cursor is not one of ours',
    nextStep: 'Start again without `cursor`.',
  },
  idempotency_key_reused: {
    family: 'conflict',
    status: 422,
    title: 'The Idempotency-Key was used with another request',
    nextStep: 'Use a new key for a new request.',
  },
  idempotency_key_running: {
    family: 'unavailable',
    status: 409,
    title: 'The first request with this Idempotency-Key is still running',
    nextStep: 'Repeat the request in a moment.',
  },
  rate_limited: { family: 'unavailable', status: 429, title: 'Too many requests', nextStep: 'Wait and repeat.' },
  internal_error: {
    family: 'internal',
    title: 'Something failed inside Airdock',
    nextStep: 'Look for the request id in the log and report it.',
  },
  configuration_invalid: {
    family: 'invalid',
    title: 'The configuration is not valid',
    nextStep: 'Correct the lines named.',
  },
  file_exposed: {
    family: 'conflict',
    title: 'Others can read or change a file that must be private',
    nextStep: 'Run the command in `detail`, and replace the secret if others may have read it; then start again.',
  },
  api_socket_refused: {
    family: 'conflict',
    title: "The API's Unix socket cannot be made",
    nextStep: 'Do what `detail` says, or set airdock.http.socket to another path.',
  },
  schema_newer: {
    family: 'conflict',
    title: 'The database belongs to a later version of Airdock',
    nextStep: 'Start that version. To go back, restore a backup that this version made into an empty data folder.',
  },
  data_dir_in_use: {
    family: 'conflict',
    title: 'Another DU uses the data folder',
    nextStep: 'Stop it, or start with another --data-dir.',
  },
  dependency_unavailable: {
    family: 'unavailable',
    title: 'A service that is needed did not answer',
    nextStep: 'Check that it runs; the job tries again by itself.',
  },
  database_full: {
    family: 'unavailable',
    title: 'The disk of the database is full',
    nextStep:
      'Reads work. Airdock gives out what it keeps in reserve on the disk of its data folder within seconds: try again then, collect garbage and delete what is not needed, or make room otherwise. What waits goes on by itself.',
  },
  database_disk_failed: {
    family: 'unavailable',
    title: 'The disk of the database fails, or takes no writes',
    nextStep:
      'Pulls go on, and reads as far as the disk can be read. The kernel mounts a disk read-only when it fails: look at `dmesg` and `findmnt`, check the disk, with Airdock stopped where it has to be unmounted, and mount it for writing. What waits goes on by itself.',
  },
  // Jobs
  job_finished: {
    family: 'conflict',
    title: 'The job has already ended',
    nextStep: 'Start a new one, or retry it if it failed.',
  },
  job_not_retryable: {
    family: 'conflict',
    title: 'Only failed and cancelled jobs can be retried',
    nextStep: 'Wait for the job to end.',
  },
  job_cancelled: {
    family: 'conflict',
    title: 'The job was cancelled',
    nextStep: 'Retry the job to continue where it stopped.',
  },
  worker_lost: {
    family: 'conflict',
    title: 'Three workers died with the job, and it got no further',
    nextStep:
      'Look for the reason in the log and in the memory of the machine; what the job works on may be what ends its workers. Then retry the job.',
  },
  job_stalled: {
    family: 'unavailable',
    title: 'The job made no progress for too long',
    nextStep: 'Check disk and network, then retry the job.',
  },
  // Registry
  registry_fenced: {
    family: 'unavailable',
    title: 'The registry takes no pushes while the DU is upgraded',
    nextStep: 'Wait until the upgrade has ended; GET /v1/du tells which one it is. Hosts go on pulling.',
  },
  registry_off: {
    family: 'conflict',
    title: 'The local registry is switched off',
    nextStep: 'Switch it on: PUT /v1/registry {"mode":"local"}.',
  },
  registry_unavailable: {
    family: 'unavailable',
    title: 'The registry did not answer',
    nextStep: 'See GET /v1/registry for its health.',
  },
  registry_storage_read_only: {
    family: 'unavailable',
    title: "The disk of the registry's storage takes no writes",
    nextStep:
      'Hosts pull as before, and backups go on. The kernel mounts a disk read-only when it fails: look at `dmesg` and `findmnt`, check the disk, then `mount -o remount,rw`. The registry then goes on by itself.',
  },
  registry_storage_changed: {
    family: 'unavailable',
    title: "The folder of the registry's storage is not the one that was there before",
    nextStep:
      'Mount its disk: the registry then goes on by itself. To go on with what is there now: POST /v1/registry/storage-adoptions {"storageId": …} with the `adoptableId` of `storageError` in GET /v1/registry.',
  },
  registry_storage_unreadable: {
    family: 'conflict',
    title: "The registry's storage cannot be read",
    nextStep:
      'See with `dmesg` whether its disk has errors, and that the folder belongs to the user of the DU. Then retry; POST /v1/verifications finds what was lost.',
  },
  storage_adoption_refused: {
    family: 'conflict',
    title: 'There is no such storage to be adopted',
    nextStep:
      'Name the id that GET /v1/registry has as `adoptableId` in `storageError`; without a `storageError` there is nothing to be done.',
  },
  registry_rejected: {
    family: 'conflict',
    title: 'The registry refused the request',
    nextStep: "The registry's own code is in `registryCode`, its words are in `detail`.",
  },
  registry_external: {
    family: 'conflict',
    title: 'The registry is not one that Airdock runs',
    nextStep: 'Collect garbage with the tools of that registry.',
  },
  registry_external_silent: {
    family: 'conflict',
    title: 'Nothing answers as a registry at the URL of the external registry',
    nextStep:
      'Correct the URL, or start that registry, then repeat the request; until then everything stays as it is. To have no registry, use mode none.',
  },
  registry_damaged: {
    family: 'conflict',
    title: 'The registry holds manifests that cannot be read, so nothing was collected',
    nextStep:
      'Push the images named in `damaged` again, or delete them; POST /v1/verifications finds whatever else is damaged.',
  },
  registry_busy: {
    family: 'conflict',
    title: 'Jobs that use the registry went on for too long, so nothing was collected',
    nextStep:
      'Wait for the jobs named in `jobs`, or cancel them, then retry; `waitMinutes` says how long a collection waits.',
  },
  registry_collecting: {
    family: 'unavailable',
    title: 'A garbage collection is under way',
    nextStep: 'Nothing has to be done: jobs go on when it is over. GET /v1/registry/garbage-collections shows it.',
  },
  collection_running: {
    family: 'conflict',
    title: 'Another garbage collection is running',
    nextStep: 'Wait for the job named in `jobId`, or cancel it.',
  },
  registry_port_taken: {
    family: 'conflict',
    title: "Another program listens on the registry's port",
    nextStep: 'Stop that program, or set airdock.registry.port in the configuration file.',
  },
  registry_socket_taken: {
    family: 'conflict',
    title: "Something else is in the place of the registry's Unix socket",
    nextStep:
      'See what has it with `ss -xlp`, end that, and check that nobody else may write to the folder run/registry of the data folder.',
  },
  registry_engine_missing: {
    family: 'conflict',
    title: 'There is no registry program',
    nextStep: 'Install the Debian package docker-registry, or set airdock.registry.binary.',
  },
  process_not_ended: {
    family: 'conflict',
    title: 'A process of the registry could not be ended',
    nextStep:
      'See what it waits for: `cat /proc/PID/stack`, `ps -o pid,stat,wchan PID`. A disk that is gone holds it until that is back, or the machine is restarted.',
  },
  registry_start_failed: {
    family: 'unavailable',
    title: 'The registry did not start',
    nextStep: "See the engine's log in the data folder, registry/engine.log.",
  },
  // Bundles and images
  bundle_path_forbidden: {
    family: 'forbidden',
    status: 422,
    title: 'The path is outside the bundle folders',
    nextStep: 'Put the file into one of the folders of airdock.bundleDirs, or add its folder there.',
  },
  bundle_not_found: {
    family: 'notFound',
    status: 422,
    title: 'There is no such file',
    nextStep: 'Check the path on the DU, or upload the bundle.',
  },
  bundle_unreadable: {
    family: 'conflict',
    status: 422,
    title: 'The file cannot be read',
    nextStep:
      'Give the user of the DU the right to read it and its folders; for EIO and ESTALE look at the disk with `dmesg`, or mount it again.',
  },
  bundle_not_ready: {
    family: 'conflict',
    title: 'The bundle has not been read successfully',
    nextStep: "See the bundle's job for the reason.",
  },
  bundle_format_unknown: {
    family: 'invalid',
    title: 'The file is no image bundle',
    nextStep: 'Make bundles with `docker save` or `skopeo copy … oci-archive:`.',
  },
  bundle_empty: {
    family: 'invalid',
    title: 'The bundle has no images',
    nextStep: 'See on the side where it was made why nothing was saved, and make it again.',
  },
  bundle_truncated: {
    family: 'invalid',
    title: 'The bundle ends before its content does',
    nextStep: 'Copy the file again and compare its checksum with the source.',
  },
  bundle_corrupt: {
    family: 'invalid',
    title: 'The bundle is damaged',
    nextStep: 'Copy the file again and compare its checksum with the source.',
  },
  bundle_unsafe: {
    family: 'invalid',
    title: 'The bundle contains members that no image tool writes',
    nextStep: 'Do not trust this file; make the bundle again from a trusted source.',
  },
  bundle_too_large: {
    family: 'invalid',
    title: 'The bundle has more in it than can be read',
    nextStep:
      'Split the bundle; when a manifest or configuration is what is too large, no image tool wrote it, and the image has to be made again.',
  },
  compression_unsupported: {
    family: 'invalid',
    title: 'The compression is not supported',
    nextStep:
      'Use gzip, zstd (up to --long=27), xz or none for bundles, each only once; gzip or none for the layers of a docker-archive.',
  },
  bundle_changed: {
    family: 'conflict',
    title: 'The bundle file changed since it was registered',
    nextStep: 'Register the bundle again.',
  },
  platforms_absent: {
    family: 'invalid',
    title: 'The bundle does not have all platforms of the image',
    nextStep: 'Hosts of the other platforms need them: save the image with all platforms, e.g. `skopeo copy --all`.',
  },
  image_name_missing: {
    family: 'invalid',
    title: 'An image in the bundle has no name',
    nextStep:
      'Register the bundle again with `names` for the digests in `unnamed`, or make it with full names, e.g. oci-archive:FILE:k8s.gcr.io/pause:3.2.',
  },
  image_name_ambiguous: {
    family: 'invalid',
    title: 'The bundle gives one name to several images',
    nextStep:
      'Register the bundle again with `names` for the digests in `unusable`: a name of its own for each that is wanted.',
  },
  image_name_collision: {
    family: 'conflict',
    title: 'Two different images would get the same local name',
    nextStep: 'Name the one that gets the name in `winners` of the push, or leave one out of the selection.',
  },
  image_list_unclear: {
    family: 'conflict',
    status: 422,
    title: 'It is not clear which list of the bundle is meant',
    nextStep: 'Name one of those in `lists` as `list`.',
  },
  images_damaged: {
    family: 'conflict',
    title: 'The registry does not hold images as they were pushed',
    nextStep:
      'The verification names them. Set damaged blobs aside with `quarantine`, then push their bundles again, or restore a backup.',
  },
  image_unsupported: {
    family: 'invalid',
    title: 'The image uses something that a registry cannot hold',
    nextStep: 'Rebuild the image without it.',
  },
  layer_encrypted: {
    family: 'invalid',
    title: 'The image has an encrypted layer',
    nextStep: 'Decrypt the image before it is bundled: `skopeo copy --decryption-key KEY …`.',
  },
  layer_foreign: {
    family: 'invalid',
    title: 'The image has a layer that only its vendor may distribute',
    nextStep:
      'Fetch the layer from one of the `urls` where the vendor allows it, and rebuild the image with it as an ordinary layer.',
  },
  digest_unsupported: {
    family: 'invalid',
    title: 'The image uses another digest algorithm than SHA-256',
    nextStep: 'Make the image again with sha256 digests, which all tools use unless told otherwise.',
  },
  image_not_found: {
    family: 'notFound',
    title: 'There is no such image',
    nextStep: 'List the images with GET /v1/images.',
  },
  digest_mismatch: {
    family: 'invalid',
    title: 'The content does not have its digest',
    nextStep: 'Copy the bundle again and compare its checksum with the source.',
  },
  reference_invalid: {
    family: 'invalid',
    status: 422,
    title: 'This is not an image reference',
    nextStep: 'Write it as registry/path:tag, e.g. k8s.gcr.io/pause:3.2.',
  },
  space_insufficient: {
    family: 'conflict',
    title: 'There is not enough disk space',
    nextStep: 'Free the bytes named, or use a larger disk.',
  },
  upload_not_found: {
    family: 'notFound',
    status: 422,
    title: 'There is no such finished upload',
    nextStep: 'Finish the upload first: HEAD /v1/uploads/{id} tells how far it is.',
  },
  // Hosts
  host_unreachable: {
    family: 'unavailable',
    title: 'The host could not be reached',
    nextStep: 'Check address, port and firewall: ssh to it from the DU.',
  },
  host_key_mismatch: {
    family: 'conflict',
    title: 'The host key is not the pinned one',
    nextStep:
      'Someone may be in between. If the host was reinstalled, compare the fingerprint on its console and PATCH the host with it as hostKey.',
  },
  host_auth_failed: {
    family: 'conflict',
    title: 'The host refused the credential',
    nextStep:
      "Check user and credential: a key must be in the user's authorized_keys; a password needs PasswordAuthentication or KbdInteractiveAuthentication.",
  },
  jump_host_invalid: {
    family: 'invalid',
    status: 422,
    title: 'The host cannot be reached through this jump host',
    nextStep:
      'Choose a registered host that does not lead back to this one, with three more hosts before it at the most.',
  },
  label_selector_invalid: {
    family: 'invalid',
    status: 422,
    title: 'This is not a label selector',
    nextStep: 'Write it as Kubernetes does: role=worker,site!=b,env in (a,b),gpu,!old.',
  },
  inventory_invalid: {
    family: 'invalid',
    status: 422,
    title: 'The inventory cannot be read',
    nextStep: 'Correct the line named, and see that `format` is that of the file.',
  },
  inventory_refused: {
    family: 'invalid',
    status: 422,
    title: 'Hosts of the inventory cannot be registered, so nothing was changed',
    nextStep: 'Correct the lines in `refused`, or send `partial: true` to register the others.',
  },
  host_timeout: {
    family: 'unavailable',
    title: 'The host did not answer in time',
    nextStep: 'Check the load of the host and the network, then retry.',
  },
  host_protocol_error: {
    family: 'conflict',
    title: 'The host broke the rules of SSH, and was disconnected',
    nextStep:
      'No sshd does this: see what answers on the port of the host. If it is a known SSH server, report it with `detail`.',
  },
  host_flood: {
    family: 'conflict',
    title: 'The host sent messages without use and without end, and was disconnected',
    nextStep: 'No sshd does this: see what answers on the port of the host.',
  },
  host_channels_exceeded: {
    family: 'conflict',
    title: 'The host opened too many connections through its tunnel at a time',
    nextStep:
      'Those above the bound in `detail` were refused, the others go on. See on the host what connects to the port of the registry.',
  },
  host_buffer_exceeded: {
    family: 'conflict',
    title: 'The host takes or gives more at a time than is kept for one host',
    nextStep: 'The host reads nothing of what it asks for, or says too much at once. See what runs there, then retry.',
  },
  host_output_exceeded: {
    family: 'conflict',
    title: 'A command on the host printed more than is read of it',
    nextStep: 'The command was ended. See what it prints on the host, or what the login shell prints around it.',
  },
  host_command_timeout: {
    family: 'conflict',
    title: 'A command on the host took longer than commands of its kind may take',
    nextStep: 'The command was ended. Check the load of the host and its disks, then retry.',
  },
  host_quarantined: {
    family: 'conflict',
    title: 'The host is in quarantine, since it stopped the process that serves hosts',
    nextStep:
      'Look at the host: its sshd, its files, who else is root there. The quarantine ends at `until`; DELETE /v1/hosts/{id}/quarantine lifts it before.',
  },
  host_check_failed: {
    family: 'conflict',
    title: 'The host is not ready',
    nextStep: 'Correct what the failed checks name, then retry.',
  },
  host_port_taken: {
    family: 'conflict',
    title: 'The registry port is taken on the host',
    nextStep: 'Find the program with `ss -ltnp` on the host, stop it, then retry.',
  },
  host_shell_unusable: {
    family: 'conflict',
    title: 'The login on the host runs no commands',
    nextStep:
      'Try `ssh USER@HOST true`. Give the user a shell that runs commands (`chsh -s /bin/sh USER`), and take ForceCommand, or command="…" before the key in authorized_keys, off it.',
  },
  host_session_refused: {
    family: 'conflict',
    title: 'The sshd of the host refuses sessions',
    nextStep:
      'Set MaxSessions in its sshd_config, and in Match blocks for the user, to 1 at least, 10 as by default; reload sshd, then retry.',
  },
  host_forwarding_refused: {
    family: 'conflict',
    title: 'The sshd of the host does not forward for this login',
    nextStep:
      'As `detail` says: AllowTcpForwarding yes, PermitListen any and DisableForwarding no for the user, Match blocks too, and no `restrict` or `no-port-forwarding` before its key; reload sshd.',
  },
  host_sudo_failed: {
    family: 'conflict',
    title: 'The user could not become root with sudo',
    nextStep:
      'As `detail` says: use root, allow sudo without password for the user, or give a credential with the right sudoPassword.',
  },
  host_runtime_missing: {
    family: 'conflict',
    title: 'The host has no working container runtime',
    nextStep:
      'Install Docker on the host (docker info must work), or name its packages in airdock.packages.docker, then retry.',
  },
  host_runtime_failed: {
    family: 'conflict',
    title: 'The container runtime did not take its new configuration',
    nextStep:
      "Look at the runtime's log on the host (journalctl -u docker, or -u containerd), correct what it complains about, then retry.",
  },
  host_cri_unavailable: {
    family: 'conflict',
    title: 'containerd on the host has no CRI, so that Kubernetes cannot use it',
    nextStep:
      'Take cri out of disabled_plugins in /etc/containerd/config.toml on the host (the package containerd.io puts it there), restart containerd, and look at `ctr plugins list` and its log; then retry.',
  },
  host_config_ineffective: {
    family: 'conflict',
    title: 'The container runtime does not run with what its configuration file says',
    nextStep:
      'See `detail` for what is in force: a file that config.toml imports, or the command line of the runtime, takes its place. Say the same there, or take that away; restart the runtime, then retry.',
  },
  host_file_refused: {
    family: 'conflict',
    title: 'A configuration file on the host cannot be changed safely',
    nextStep: 'Correct the file named in `detail` on the host; nothing in it was changed. Then retry.',
  },
  host_packages_failed: {
    family: 'conflict',
    title: 'Packages could not be installed on the host',
    nextStep:
      "The package manager's own message is in `detail`. Dependencies that hosts lack must be in the repository's folder; see GET /v1/package-repositories.",
  },
  host_packages_locked: {
    family: 'conflict',
    title: 'Another package manager is at work on the host',
    nextStep:
      'Wait for the end of the process that `detail` names (an upgrade that runs by itself, cloud-init), or see why it hangs; then retry. Nothing was installed.',
  },
  host_command_failed: {
    family: 'conflict',
    title: 'A command on the host failed',
    nextStep: "The command's own message is in `detail`.",
  },
  host_disk_full: {
    family: 'conflict',
    title: "The host's disk is full",
    nextStep:
      "Free space on the host (`df -h`; images are in Docker's or containerd's folder below /var/lib), then retry. What was there before stays usable.",
  },
  host_disk_read_only: {
    family: 'conflict',
    title: 'A disk of the host is mounted read-only',
    nextStep:
      'The kernel mounts a disk read-only when it fails: look at `dmesg` and `findmnt` on the host, check the disk, mount it for writing, then retry. What was there before stays usable.',
  },
  host_pull_failed: {
    family: 'conflict',
    title: 'The host could not pull from the registry',
    nextStep: 'See GET /v1/tunnels for the tunnel and GET /v1/images for the image.',
  },
  host_not_configured: {
    family: 'conflict',
    title: 'The host is not configured',
    nextStep: 'POST /v1/host-configurations for it first.',
  },
  host_drifted: {
    family: 'conflict',
    title: 'The host is no longer as it was configured',
    nextStep: 'See `drift` of the host; POST /v1/host-configurations with action reapply puts it right.',
  },
  tunnel_exposed: {
    family: 'conflict',
    title: "The host's end of the tunnel would be open to its network, and was closed",
    nextStep:
      'Set GatewayPorts no in its sshd_config, Match blocks too, or take the drop-in off the unit that `detail` names; reload it, then retry. Nothing was answered through it.',
  },
  tunnel_failed: {
    family: 'unavailable',
    title: 'The tunnel is down',
    nextStep: 'See GET /v1/tunnels for the reason; it is tried again by itself.',
  },
  credential_invalid: {
    family: 'invalid',
    status: 422,
    title: 'The SSH credential cannot be used',
    nextStep: 'Give a private key in OpenSSH or PEM format, with its passphrase if it has one.',
  },
  secrets_key_mismatch: {
    family: 'conflict',
    title: 'These secrets were sealed with another key',
    nextStep:
      'Bring the images alone: `settings: false`. Only a DU that has no secrets of its own may take over the secrets.key that they were sealed with (airdock.secretsKeyFile); start it again, and retry.',
  },
  secrets_key_invalid: {
    family: 'internal',
    title: 'A stored secret cannot be decrypted',
    nextStep: 'Restore the secrets.key file that the data was written with.',
  },
  // Clusters
  kubernetes_version_unsupported: {
    family: 'invalid',
    status: 422,
    title: 'This Kubernetes version cannot use a local registry',
    nextStep: 'Use Kubernetes 1.20 or later.',
  },
  runtime_mismatch: {
    family: 'conflict',
    status: 422,
    title: 'A host has another container runtime than the cluster',
    nextStep: 'Give the one of the hosts as options.containerRuntime, or configure the hosts with the other one.',
  },
  image_set_missing: {
    family: 'conflict',
    title: 'No image set is defined for this Kubernetes version',
    nextStep: 'Define it with POST /v1/image-sets.',
  },
  images_missing: {
    family: 'conflict',
    title: 'Images of the set are missing in the registry',
    nextStep: 'Push bundles that contain the images named in `missing`.',
  },
  host_in_cluster: {
    family: 'conflict',
    title: 'A host belongs to another cluster',
    nextStep: 'Choose other hosts, or delete that cluster first.',
  },
  cluster_network_invalid: {
    family: 'invalid',
    status: 422,
    title: 'The networks of the cluster cannot be used',
    nextStep:
      'Choose networks that overlap neither each other nor the addresses of hosts, e.g. 10.20.0.0/16 and 10.21.0.0/16.',
  },
  du_upgrade_running: {
    family: 'conflict',
    title: 'The DU is being upgraded',
    nextStep: 'Finish the upgrade named in `detail`, or roll it back.',
  },
  du_upgrade_file_unreadable: {
    family: 'conflict',
    title: 'The file that tells of an upgrade which has begun cannot be read',
    nextStep:
      'See why with `cat` and `dmesg`, and bring du-upgrade.json in the data folder back from a copy. If no upgrade has begun, move it away, and repeat.',
  },
  du_upgrade_state: {
    family: 'conflict',
    title: 'The upgrade is not at a step where this is possible',
    nextStep: 'GET the upgrade: `phase` tells where it is.',
  },
  du_upgrade_preflight_failed: {
    family: 'conflict',
    title: 'The DU cannot be upgraded now',
    nextStep: 'Put right what `problems` of the upgrade names, then begin again.',
  },
  du_upgrade_rolled_back: {
    family: 'conflict',
    title: 'The upgrade failed and was rolled back: everything is as before',
    nextStep: 'Put right what `detail` says, then begin again.',
  },
  du_engine_digest_missing: {
    family: 'invalid',
    status: 422,
    title: 'A program is installed only by its digest',
    nextStep:
      'Give `engine.digest`: sha256: and what sha256sum says of the program, as its maker publishes it. A dry run without it tells what the file has.',
  },
  du_engine_digest_wrong: {
    family: 'conflict',
    title: 'The program is another one than the request names',
    nextStep: 'Do not trust the file. It was not run; bring the right one, or correct `engine.digest`.',
  },
  du_upgrade_incomplete: {
    family: 'conflict',
    title: 'Images are missing after the upgrade',
    nextStep: 'The report of the upgrade names them. It was rolled back, or can be.',
  },
  du_version_unsupported: {
    family: 'conflict',
    title: 'The DU is too old for this',
    nextStep:
      'Upgrade the DU; GET /v1/du says its version, which `airdock.duVersion` sets. Clusters that exist can be moved to the local registry from 5.3 on.',
  },
  upgrade_refused: {
    family: 'conflict',
    status: 422,
    title: 'There is no such upgrade',
    nextStep: 'Choose a later version, at most one minor version ahead.',
  },
  upgrade_not_running: {
    family: 'conflict',
    title: 'The upgrade is not running',
    nextStep: 'See its job; a failed or cancelled one goes on with a retry.',
  },
  cluster_not_ready: {
    family: 'conflict',
    title: 'The cluster would not stand up from the local registry now',
    nextStep:
      'Correct what `problems` names; POST /v1/readiness-checks with fix pushes missing images from registered bundles.',
  },
  cluster_busy: {
    family: 'conflict',
    title: 'Something else is done to the cluster now',
    nextStep: 'Wait for the job named, or cancel it.',
  },
  cluster_diverged: {
    family: 'conflict',
    title: 'The cluster is not as Airdock knows it',
    nextStep:
      'Compare `detail` with the cluster itself; correct it there, or delete the cluster here and register it again with `existing`.',
  },
  node_unhealthy: {
    family: 'conflict',
    title: 'A node is not healthy, so the upgrade has stopped',
    nextStep:
      'Look at the node (kubectl describe node, journalctl -u kubelet), then retry the job: it goes on with this node.',
  },
  provisioner_unavailable: {
    family: 'conflict',
    status: 422,
    title: 'The provisioner cannot be used',
    nextStep: 'Choose another provisioner, or do what `detail` says.',
  },
  image_in_use: {
    family: 'conflict',
    title: 'Clusters or image sets need the image',
    nextStep: 'Delete those named first, or repeat the request with force=true.',
  },
  pmk_unavailable: {
    family: 'unavailable',
    title: 'The PMK control plane did not answer',
    nextStep:
      'Check its URL and that it runs: during a DU upgrade all of its APIs are down. Jobs try again by themselves.',
  },
  pmk_unauthorized: {
    family: 'conflict',
    title: 'The PMK control plane refused the login',
    nextStep: 'Check user, password, project and domain of the PMK connection.',
  },
  pmk_refused: {
    family: 'conflict',
    title: 'The PMK control plane refused the request',
    nextStep: "PMK's own words are in `detail`, its HTTP status is in `pmkStatus`.",
  },
  pmk_unexpected: {
    family: 'conflict',
    title: 'The PMK control plane did not answer as PMK does',
    nextStep:
      'Check that the URL of the PMK connection is that of the DU itself, such as https://du.example.com; `detail` says what was wrong with the answer.',
  },
  pmk_field_invalid: {
    family: 'invalid',
    status: 422,
    title: 'A field cannot be given to PMK',
    nextStep: 'Correct the field named in `field`. Registry fields are host or host:port, such as localhost:5100.',
  },
  runtime_unsupported: {
    family: 'conflict',
    status: 422,
    title: 'This Kubernetes version does not work with Docker',
    nextStep: 'Configure the host with `containerRuntime: containerd`, or use Kubernetes up to 1.23.',
  },
  kubernetes_version_skew: {
    family: 'conflict',
    title: 'Kubernetes cannot go from this version to that one in one step',
    nextStep: 'Upgrade one minor version at a time, never back, the first control plane first and the workers last.',
  },
  kubeadm_failed: {
    family: 'conflict',
    title: 'kubeadm failed on the host',
    nextStep:
      "kubeadm's own message is in `detail`; correct what it complains about on the host, then retry: what is done already is not done again.",
  },
  kubernetes_api_failed: {
    family: 'conflict',
    title: 'The API of the Kubernetes cluster gave no proper answer',
    nextStep:
      'Look on the control plane host: `kubectl --kubeconfig /etc/kubernetes/admin.conf get nodes`, and the log of its kubelet; then retry.',
  },
  drain_failed: {
    family: 'conflict',
    title: 'The node could not be drained',
    nextStep:
      'Move or delete the pods named in `detail`, or correct their disruption budgets, then retry. No new pods come to the node until then.',
  },
  node_not_ready: {
    family: 'conflict',
    title: 'The node did not become ready',
    nextStep:
      'Look at the log of the kubelet on the host (`journalctl -u kubelet`) and at the network plugin of the cluster, then retry.',
  },
  // Backups
  backup_incomplete: {
    family: 'conflict',
    title: 'The backup is not complete',
    nextStep: 'Use a backup whose state is complete.',
  },
  backup_corrupt: {
    family: 'invalid',
    title: 'The backup is damaged',
    nextStep: 'Use another backup; what is damaged is named in `detail`.',
  },
  backup_format_unsupported: {
    family: 'invalid',
    title: 'The backup was written in a format that this version cannot read',
    nextStep: 'Use the version of Airdock that wrote it, or a later one.',
  },
  backup_store_unsafe: {
    family: 'invalid',
    title: 'The backup store holds something that no store has',
    nextStep:
      'Do not trust this disk: a link, a pipe, a device or an endless listing is in its place of files. Look at what `detail` names.',
  },
  backup_unsigned: {
    family: 'conflict',
    title: 'The backup is not signed',
    nextStep:
      'Find out where it comes from. With `allowUnsigned: true` it is taken all the same; first with `dryRun: true`, which shows what it would change.',
  },
  backup_signer_unknown: {
    family: 'conflict',
    title: 'The backup is signed with a key that nobody has vouched for here',
    nextStep:
      'Compare the fingerprint in `keyId` with that of the site that made it, and add its key: POST /v1/backup-signing-keys. Where that site is gone, take it as an unsigned one: `allowUnsigned: true`, first with `dryRun: true`.',
  },
  signing_key_invalid: {
    family: 'invalid',
    status: 422,
    title: 'This is no public key that signs backups',
    nextStep:
      'Give the `publicKey` that the other site shows at /v1/backup-signing-keys: ssh-ed25519 and what follows it, in one line.',
  },
  backup_signature_wrong: {
    family: 'forbidden',
    title: 'The signature of the backup is wrong: its record was changed after it was signed',
    nextStep: 'Do not use it: somebody changed it. Take another copy of it, or another backup.',
  },
  restore_unconfirmed: {
    family: 'conflict',
    title: 'The restore would change where a host or its credential leads, and nobody has confirmed that',
    nextStep:
      'Look at `changes` in the report of the restore, and repeat it with `confirm` set to the `planDigest` of that report; an upgrade of the DU goes on with `confirm` too: POST /v1/du/upgrades/{id}/finish.',
  },
  state_rows_invalid: {
    family: 'invalid',
    title: 'The state in the backup holds rows that no DU of this version would have written',
    nextStep:
      'Nothing was changed. `detail` names table, row and column; restore with `settings: false`, or from another backup.',
  },
  backup_key_missing: {
    family: 'conflict',
    title: 'The backup is encrypted, and no key of this DU opens it',
    nextStep: 'Set airdock.backup.encryption.identityFile to the file with the age key that it was encrypted for.',
  },
  backup_target_unavailable: {
    family: 'unavailable',
    title: 'Where backups are kept cannot be reached',
    nextStep: 'Look whether the disk is there and mounted, or the S3 server answers; then retry.',
  },
  backup_target_read_only: {
    family: 'conflict',
    title: 'Where backups are kept takes no writes',
    nextStep:
      'Mount the disk for writing, or give the user or the S3 key the right to write. Restores, verifications and exports work without it.',
  },
  backup_target_changed: {
    family: 'conflict',
    title: 'Another backup store is where backups are kept',
    nextStep:
      'Mount the disk with the store that was there. To begin with another one, POST /v1/backup-targets/{name}/adoptions.',
  },
  backup_store_busy: {
    family: 'conflict',
    title: 'Others work in the backup store',
    nextStep:
      'Wait for the jobs that are running, or ask with a larger waitMinutes. Locks of what was killed end after 15 minutes.',
  },
  backup_exchange_dir_missing: {
    family: 'conflict',
    title: 'No folder for exported backups is configured',
    nextStep:
      'Set airdock.backup.exchangeDir to a folder, e.g. where the disk is mounted that is carried to the other site.',
  },
  backup_file_not_found: {
    family: 'invalid',
    status: 422,
    title: 'There is no such exported backup',
    nextStep: 'Put the file into the folder of airdock.backup.exchangeDir.',
  },
  webhook_target_forbidden: {
    family: 'invalid',
    status: 422,
    title: 'This webhook target is not allowed',
    nextStep:
      'Use an http or https URL without credentials in it, of a host that airdock.webhooks.allowedHosts allows; see docs/webhooks.md.',
  },
  registry_target_forbidden: {
    family: 'invalid',
    status: 422,
    title: 'This registry may not be reached from here',
    nextStep:
      'Use the URL of a registry that is neither on this machine nor link-local, or list it in airdock.registry.allowedHosts; https where a password is sent.',
  },
  webhook_delivery_pending: {
    family: 'conflict',
    title: 'The delivery is still being tried',
    nextStep: 'Wait for its end: `nextAttemptAt` tells when it is tried again.',
  },
  webhook_endpoint_disabled: {
    family: 'conflict',
    title: 'The webhook endpoint is disabled',
    nextStep: 'Try it with POST /v1/webhook-endpoints/{id}/pings, then PATCH it with enabled: true.',
  },
} as const satisfies Record<string, ErrorDefinition>;

/** One of the codes; docs/errors.md lists them. */
export type ErrorCode = keyof typeof definitions;

/** All codes with what they mean: the OpenAPI documents and docs are made from it. */
export const errorDefinitions: Readonly<Record<ErrorCode, ErrorDefinition>> = definitions;

const familyStatus: Record<ErrorFamily, number> = {
  invalid: 422,
  unauthorized: 401,
  forbidden: 403,
  notFound: 404,
  conflict: 409,
  unavailable: 503,
  internal: 500,
};

/**
 * Extra facts of one error. `detail` is a sentence for people; all other keys travel into the problem document as they
 * are: no secrets.
 */
export interface ErrorDetails {
  detail?: string;
  [key: string]: unknown;
}

/** An RFC 9457 problem document, with the stable `code` and the next step for the operator. */
export interface Problem {
  type: string;
  title: string;
  status: number;
  /** An ErrorCode; of another version of Airdock perhaps one that this one does not know. */
  code: string;
  detail?: string | undefined;
  nextStep: string;
  [key: string]: unknown;
}

/**
 * The one error class. Adapters translate foreign errors into it once, at their edge, with `cause`. Whatever they
 * repeat of what a host, a file or a server has said is cleaned here: it comes to terminals, logs and answers.
 *
 * @example
 * ```ts
 * throw new AppError('bundle_not_found', { path }, { cause: error });
 * ```
 */
export class AppError extends Error {
  readonly details: ErrorDetails;

  constructor(
    readonly code: ErrorCode,
    details: ErrorDetails = {},
    options?: { cause?: unknown },
  ) {
    const clean = cleanDeep(details) as ErrorDetails;
    super(clean.detail ? `${definitions[code].title}: ${clean.detail}` : definitions[code].title, options);
    this.name = 'AppError';
    this.details = clean;
  }

  get family(): ErrorFamily {
    return definitions[this.code].family;
  }

  get status(): number {
    const definition: ErrorDefinition = definitions[this.code];
    return definition.status ?? familyStatus[definition.family];
  }
}

/** True for errors that may vanish by waiting; jobs try these again. */
export const isTransient = (error: unknown): boolean => error instanceof AppError && error.family === 'unavailable';

/**
 * Any thrown value as a problem document. Unknown errors become `internal_error` without their message, which may hold
 * anything.
 */
export function toProblem(error: unknown): Problem {
  const known = error instanceof AppError ? error : new AppError('internal_error', {}, { cause: error });
  const { title, nextStep } = definitions[known.code];
  return {
    ...known.details,
    type: `urn:airdock:problem:${known.code}`,
    title,
    status: known.status,
    code: known.code,
    nextStep,
  };
}

/** The error again that `toProblem` made a document of, e.g. one stored with a job. */
export function fromProblem(problem: Problem): AppError {
  const { type: _type, title: _title, status: _status, code, nextStep: _nextStep, ...details } = problem;
  return new AppError(Object.hasOwn(definitions, code) ? (code as ErrorCode) : 'internal_error', details);
}

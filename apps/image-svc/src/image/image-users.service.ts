import type { ImageUsers } from './image.schema.js';

/** Who needs an image. Image sets know, which stand above images: they are this service. */
export abstract class ImageUsersService {
  /**
   * Which sets name one of the references, and which clusters need those. Throws `dependency_unavailable` when
   * cluster-svc does not answer.
   */
  abstract usersOf(upstreams: readonly string[]): Promise<ImageUsers>;
}

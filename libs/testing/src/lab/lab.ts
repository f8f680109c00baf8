/** The lab: an engine and hosts on this machine, for tests against the real thing. */
import { type EngineOptions, type LabEngine, startEngine } from './engine.js';
import { type HostOptions, type LabHost, startHost } from './host.js';
import { ensureHostImage } from './rootfs.js';

/** An engine that is ready to start hosts. Disposal is `stop`. */
export interface Lab extends AsyncDisposable {
  engine: LabEngine;
  startHost(options?: HostOptions): Promise<LabHost>;
  /** Removes all hosts and images of this lab, and ends the engine if it is the lab's own. */
  stop(): Promise<void>;
}

/** Starts an engine and makes the hosts' image. Where this machine cannot run a lab, `reason` says why. */
export async function startLab(
  options: EngineOptions = {},
): Promise<{ lab: Lab } | { lab?: undefined; reason: string }> {
  const started = await startEngine(options);
  if (!started.engine) return { reason: started.reason };
  const { engine } = started;
  const { log } = options;
  try {
    await ensureHostImage(engine, log);
  } catch (error) {
    await engine.stop();
    throw error;
  }
  return {
    lab: {
      engine,
      startHost: (host = {}) => startHost(engine, { log, ...host }),
      stop: engine.stop,
      [Symbol.asyncDispose]: engine.stop,
    },
  };
}

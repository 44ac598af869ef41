import { join } from 'node:path';
import { loadProfile } from '../plan/profile.ts';
import { ExpError } from '../schemas/errors.ts';
import type { Profile } from '../schemas/profile.ts';
import { repoRoot } from '../services/home.ts';

/** The profile whose services a verb starts or stops; refuses one that says where its services are. */
export function embeddedProfile(reference: string): Profile {
  const profile = loadProfile(reference, join(repoRoot(), 'profiles'));
  if (profile.embedded === undefined) {
    throw new ExpError(
      'PROFILE',
      `profile ${profile.name}`,
      'its services run elsewhere, at the addresses it names; nothing is started or stopped here',
    );
  }
  return profile;
}

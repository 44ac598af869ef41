import { expect, test } from 'vitest';
import { FIRST_CURVES } from '../../cli/report/page/first-curves.ts';
import { HEALTH_METRICS } from '../../schemas/health-metrics.ts';

test('the curves that a report shows at once are curves that something records', () => {
  expect(HEALTH_METRICS).toEqual(expect.arrayContaining([...FIRST_CURVES]));
});
